"""Flags of XLA, the compiler, by platform and mode (`train.xla`), each with the reason for it.

They go to the compiler with each program, not by the environment: `XLA_FLAGS` and `LIBTPU_INIT_ARGS` are read once,
when JAX starts, and reach every program. A flag that you set there wins over ours.

Modes:

- `default`: what XLA does by itself, and on CPUs what was measured to help.
- `fast`: flags that should help and that no card or TPU has confirmed yet. Measure before you keep it, with
  `lsmfm bench step_dummy_data --xla fast`.
- `deterministic`: the same bits from the same seed on the same devices. On GPUs it costs speed; how much has not been
  measured. CPUs give the same bits in every mode, and TPU programs add up in a fixed order by themselves.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from lsmfm_jax.errors import InputError

MODES = ("default", "fast", "deterministic")
Value = bool | str | int
# What a user may have set flags in, by platform.
_OWN = {"cpu": ("XLA_FLAGS",), "gpu": ("XLA_FLAGS",), "tpu": ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}


class Flag(NamedTuple):
    """A flag of XLA.

    Attributes:
        value: what it is set to.
        why: what it does for these programs.
        one_device: it helps on one device alone, and is left out with more.
        needed: the mode is not what it says without this flag: neither a compiler that lacks it nor a user's other
            value will do.
    """

    value: Value
    why: str
    one_device: bool = False
    needed: bool = False


_CPU = {
    "xla_cpu_experimental_ynn_fusion_type": Flag(
        "",
        "What XLA gives to YNNPACK by default and does better itself: its sums over channels take three times as long "
        "there. On the SwinUNETR's step this saves a third of the time and a tenth of the memory; it costs the UNet's "
        "a twentieth of the time and saves it a seventh of the memory (batch 1, 64³, 2 cores).",
    ),
    "xla_cpu_enable_concurrency_optimized_scheduler": Flag(
        False,
        "Ordered to run side by side, as is XLA's default, operations hold a quarter more and, as most use all cores "
        "by themselves, are no quicker. With several devices the default order of the collectives stays.",
        one_device=True,
    ),
}
FLAGS: dict[str, dict[str, dict[str, Flag]]] = {
    "cpu": {"default": _CPU, "fast": _CPU, "deterministic": _CPU},
    "gpu": {
        "default": {},
        "fast": {
            "xla_gpu_force_conv_nhwc": Flag(
                True,
                "Channels last in all convolutions, as a card's matrix units want them; in 3D XLA puts them first.",
            ),
            "xla_gpu_enable_latency_hiding_scheduler": Flag(
                True, "Sends gradients between cards while the rest of the backward pass is computed."
            ),
            "xla_gpu_triton_gemm_any": Flag(
                True, "Matrix products of any shape with what comes before and after them in one kernel."
            ),
        },
        "deterministic": {
            "xla_gpu_deterministic_ops": Flag(
                True, "Sums in a fixed order: no scatter or convolution that adds up as threads come.", needed=True
            ),
            "xla_gpu_autotune_level": Flag(
                0,
                "Kernels chosen by rule: chosen by timing, as by default, the next start may take another one, whose "
                "last bits are others.",
                needed=True,
            ),
        },
    },
    "tpu": {
        "default": {},
        "fast": {
            "xla_tpu_enable_data_parallel_all_reduce_opt": Flag(
                True, "Gradients are sent while the rest of the backward pass is computed."
            ),
            "xla_tpu_data_parallel_opt_different_sized_ops": Flag(
                True, "The same for gradients of different sizes, which these networks have."
            ),
        },
        "deterministic": {},
    },
}


def wanted_flags(
    platform: str, mode: str, *, devices: int, environment: Mapping[str, str] = os.environ
) -> dict[str, Flag]:
    """The flags of a mode on a platform, without those that the user has set.

    Args:
        platform: of the devices, as JAX names it; none of the flags are for one that is not in `FLAGS`.
        mode: one of `MODES`.
        devices: how many run the program together.
        environment: where the user's flags are read from.

    Raises:
        InputError: the mode is unknown, or the user has set a flag that the mode needs to another value.
    """
    if mode not in MODES:
        raise InputError(f"train.xla: {mode!r}; allowed: {', '.join(MODES)}")
    own = own_flags(platform, environment)
    wanted = {}
    for name, flag in FLAGS.get(platform, {}).get(mode, {}).items():
        if flag.needed and name in own and own[name] != _as_text(flag.value):
            raise InputError(
                f"train.xla: {mode!r} needs --{name}={_as_text(flag.value)}, and "
                f"{' or '.join(_OWN[platform])} has --{name}={own[name]}; remove it there, or choose another mode "
                f"({', '.join(other for other in MODES if other != mode)})"
            )
        if name not in own and (devices == 1 or not flag.one_device):
            wanted[name] = flag
    return wanted


def own_flags(platform: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Flags that the user has set in the environment, as text; `--flag` alone means true. The last one counts."""
    found = {}
    for variable in _OWN.get(platform, ()):
        for name, equals, value in re.findall(r"(?:^|\s)--?(xla_\w+)(=?)(\S*)", environment.get(variable, "")):
            found[name] = value if equals else "true"
    return found


def flag_record(platform: str, mode: str, options: Mapping[str, Value] | None, **more: Any) -> dict[str, Any]:
    """What a run's record says of the compiler: the mode, the flags that it came to, and the user's own.

    Of the user's flags those that name places on this machine are left out.
    """
    own = {name: value for name, value in own_flags(platform, **more).items() if "/" not in value}
    return {"mode": mode, "platform": platform, "flags": dict(options or {}), "own_flags": own}


def _as_text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
