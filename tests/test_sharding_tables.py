"""Where each leaf of the big recipes lies on a pod, without one: compared with the committed tables."""

import difflib
import math

import jax
import pytest
from jax.sharding import PartitionSpec
from sharding_tables import GOLDEN, MESHES, RECIPES, pretend_mesh, state_shapes, table

from lsmfm_jax.train.optim import leaf_path
from lsmfm_jax.train.sharding import SPLIT_RULES, split_of, state_shardings


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("mesh_name", MESHES)
def test_the_tables_are_those_committed(recipe, mesh_name):
    file = GOLDEN / f"{recipe}_{mesh_name}.txt"
    changed = list(difflib.unified_diff(file.read_text().splitlines(), table(recipe, mesh_name).splitlines(), n=0))
    assert not changed, "\n".join([*changed, "wanted? then: python tests/sharding_tables.py"])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_device_of_eight_holds_little_more_than_an_eighth(recipe):
    state, mesh = state_shapes(recipe), pretend_mesh(MESHES["h200_8"])
    leaves, shardings = jax.tree.leaves(state), jax.tree.leaves(state_shardings(state, mesh))
    held = sum(math.prod(s.shard_shape(leaf.shape)) for leaf, s in zip(leaves, shardings, strict=True))
    assert held < 1.15 / 8 * sum(math.prod(leaf.shape) for leaf in leaves)


@pytest.mark.parametrize("recipe", RECIPES)
def test_moments_and_teacher_lie_where_their_parameters_do(recipe):
    state = state_shapes(recipe)
    shardings = state_shardings(state, pretend_mesh(MESHES["h200_8"]))
    of_parameter = {leaf_path(path): s.spec for path, s in jax.tree_util.tree_leaves_with_path(shardings.params)}
    compared = 0
    for tree in (shardings.opt_state, shardings.teacher):
        for path, sharding in jax.tree_util.tree_leaves_with_path(tree):
            name = leaf_path(path)
            same = [parameter for parameter in of_parameter if name.endswith("/" + parameter)]
            same = same or [f"backbone/{name.removeprefix('params/')}"] * name.startswith("params/")
            if same:
                assert sharding.spec == of_parameter[max(same, key=len)], name
                compared += 1
    assert compared > len(of_parameter)


def test_the_first_rule_that_matches_decides():
    kernel = (3, 3, 3, 64, 128)
    assert split_of("params/backbone/conv/kernel", kernel, 8) == PartitionSpec(None, None, None, None, "fsdp")
    assert split_of("params/backbone/conv/kernel", (3, 3, 3, 128, 36), 8) == PartitionSpec(*[None] * 3, "fsdp", None)
    assert split_of("params/backbone/conv/kernel", (3, 3, 3, 90, 90), 8) == PartitionSpec()
    assert split_of("params/backbone/conv/bias", (2**16,), 8) == PartitionSpec()
    assert split_of("params/text_tower/embeddings/word", (30522, 768), 8) == PartitionSpec(None, "fsdp")
    assert split_of("params/backbone/conv/kernel", (8, 8), 8) == PartitionSpec(), "small ones stay whole"
    assert split_of("params/backbone/conv/kernel", kernel, 1) == PartitionSpec()


def test_a_large_leaf_without_a_rule_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"params/memory_bank, shape \(4096, 64\): no rule says how"):
        split_of("params/memory_bank", (4096, 64), 8)


# Pretraining has no low-rank factors; finetuning does.
FACTORS = "params/lora/transformer/stage_0/block_0/attention/qkv_kernel/a"


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_rule_is_used(recipe):
    import re

    paths = [
        leaf_path(path) for path, leaf in jax.tree_util.tree_leaves_with_path(state_shapes(recipe)) if leaf.size > 1
    ]
    used = {rule.pattern for path in [*paths, FACTORS] for rule in SPLIT_RULES if re.search(rule.pattern, path)}
    assert used == {rule.pattern for rule in SPLIT_RULES}


def test_low_rank_factors_stay_whole():
    assert split_of(FACTORS, (4096, 64), 8) == PartitionSpec()
