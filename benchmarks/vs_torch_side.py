"""One side of `vs_torch`, in a process of its own: reads commands from stdin, answers each with a line of JSON.

A process per side makes peak memory honest, and lets the parent switch between them step by step.
"""

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from outcome import forget_process_peak, process_peak_bytes


class OurSide:
    """The JAX step."""

    def __init__(self, plan: dict[str, Any]) -> None:
        # Memory as it is needed, not three quarters of the card at once: the other side is on it too.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        from training_step import default_dtype

        self.plan, self.config = plan, configuration(plan, default_dtype())

    def dtype(self) -> str:
        """Compute type of the timed steps."""
        return self.config.model.dtype

    def device(self) -> str:
        """What it runs on."""
        from outcome import device_name

        return device_name()

    def first_losses(self) -> dict[str, float]:
        """Metrics of a first step in float32; writes the weights before it, and its mask, for the other side."""
        import jax
        from recipes import dummy_batch
        from training_step import build, on_mesh

        config = self.config.copy_and_resolve_references()
        config.model.dtype = "float32"
        with jax.default_matmul_precision("highest"):
            built = build(config)
            batch = on_mesh(built, dummy_batch(config))
            key = jax.random.fold_in(jax.random.key(config.seed), 0)
            mask = jax.jit(lambda batch: built.task.prepare(batch, key, np.int32(0))["mask"])(batch)
            write_weights(pathlib.Path(self.plan["folder"]), config, built.state, np.asarray(mask))
            built.state, metrics = built.step(built.state, batch)
        names = ("loss", "distill", "reconstruct", "align", "contrast", "grad_norm")
        found = {name: float(metrics[name]) for name in names if name in metrics}
        if self.config.model.dtype == "float32" and jax.default_backend() == "cpu":
            self.built = built  # This very program is then timed.
        return found

    def start(self) -> None:
        """Builds the step to be timed."""
        from recipes import dummy_batch
        from training_step import build, on_mesh

        if not hasattr(self, "built"):
            self.built = build(self.config)
        self.batch = on_mesh(self.built, dummy_batch(self.config))

    def step(self) -> None:
        """One step, waited for."""
        import jax

        self.built.state, metrics = self.built.step(self.built.state, self.batch)
        jax.block_until_ready((self.built.state, metrics))

    def peak_bytes(self) -> int:
        """Most memory used so far."""
        from device_peak import peak_bytes

        return peak_bytes()[0]

    def forget_peak(self) -> bool:
        """Resets the peak memory, on a CPU; returns whether it could. As in training, after compiling."""
        import jax

        from lsmfm_jax.train.compilation import return_compiler_memory

        return_compiler_memory()
        return jax.default_backend() == "cpu" and forget_process_peak()


def write_weights(folder: pathlib.Path, config: Any, state: Any, mask: np.ndarray) -> None:
    """The state's weights under PyTorch's names, and the first step's mask."""
    import jax
    from training_step import bert_of

    from lsmfm_jax.convert import pretraining

    params, stats, teacher = jax.device_get((state.params, state.batch_stats, state.teacher))
    weights = pretraining.Pretraining(
        backbone=config.model.name,
        architecture={},
        params=params,
        batch_stats=stats,
        teacher=teacher,
        bert=bert_of(config),
        ema_decay=None,
    )
    np.savez(folder / "weights.npz", **pretraining.to_lightning(weights))
    np.save(folder / "mask.npy", mask)


class TorchSide:
    """The PyTorch step."""

    def __init__(self, plan: dict[str, Any]) -> None:
        import torch

        self.torch, self.plan = torch, plan
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.config = configuration(plan, "bfloat16" if self.device == "cuda" else "float32")
        torch.manual_seed(0)

    def _build(self) -> None:
        import torch_pretraining
        from recipes import bert_sizes, dummy_batch

        torch, config = self.torch, self.config
        bert = bert_sizes(config)
        self.model = torch_pretraining.Pretraining(config, bert)
        weights = pathlib.Path(self.plan["folder"]) / "weights.npz"
        if weights.exists():
            torch_pretraining.load(self.model, dict(np.load(weights)))
        if bert is not None:
            for name, parameter in self.model.text_encoder.named_parameters():
                trains = torch_pretraining.trained_text(name, layers=bert["num_layers"], top_k=config.text.top_k_layers)
                parameter.requires_grad_(trains)
        self.model.to(self.device)
        self.model.train()
        self.model.teacher_encoder.eval()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optim = config.optim
        self.optimiser = torch.optim.AdamW(trained, lr=optim.learning_rate, weight_decay=optim.weight_decay)
        numpy_batch = dummy_batch(config)
        # As PyTorch has few operations on uint16, volumes are carried over as int32.
        numpy_batch["image"] = numpy_batch["image"].astype(np.int32)
        self.batch = {name: torch.from_numpy(value).to(self.device) for name, value in numpy_batch.items()}

    def _losses(self, batch: Any, mask: Any = None) -> Any:
        import torch_pretraining

        size = self.config.data.input_size[0]
        image = torch_pretraining.prepare(batch, size)
        if mask is None:
            geometry = {"block_sizes": self.config.mask.block_sizes, "ratio": self.config.mask.ratio}
            mask = torch_pretraining.block_mask(len(image), size, device=self.device, **geometry)
        return self.model.losses(image, mask, batch)

    def first_losses(self) -> dict[str, float]:
        """Losses and gradient norm in float32, with the weights, volumes and mask of the other side."""
        torch = self.torch
        self._build()
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        mask = torch.from_numpy(np.load(pathlib.Path(self.plan["folder"]) / "mask.npy")).to(self.device)
        losses = self._losses(self.batch, mask[:, None])
        losses["loss"].backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        self.optimiser.zero_grad(set_to_none=True)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        return {name: float(value.detach()) for name, value in losses.items()} | {"grad_norm": float(norm)}

    def start(self) -> None:
        """Builds the step to be timed, where the comparison of losses has not."""
        if not hasattr(self, "model"):
            self._build()
        self.torch.backends.cudnn.benchmark = True

    def step(self) -> None:
        """One optimiser step, waited for; released: of one-patch micro-batches, as the released code runs."""
        parts = self.config.train.accumulate_steps
        rows = len(self.batch["image"]) // parts
        for part in range(parts):
            micro = {name: value[part * rows : (part + 1) * rows] for name, value in self.batch.items()}
            with self.torch.autocast(self.device, self.torch.bfloat16, enabled=self.config.model.dtype == "bfloat16"):
                losses = self._losses(micro)
            (losses["loss"] / parts).backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.model.follow(self.config.teacher.decay)
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def peak_bytes(self) -> int:
        """Most memory used so far."""
        return self.torch.cuda.max_memory_allocated() if self.device == "cuda" else process_peak_bytes()

    def forget_peak(self) -> bool:
        """Resets the peak memory, on a CPU; returns whether it could."""
        return self.device == "cpu" and forget_process_peak()


def configuration(plan: dict[str, Any], dtype: str) -> Any:
    """The recipe, without augmentation: PyTorch's would run in its loader, not in its step."""
    from recipes import recipe

    sizes = {name: plan[name] for name in ("size", "batch", "text", "tiny")}
    config = recipe(plan["model"], dtype=plan["dtype"] or dtype, **sizes)
    config.augment.probability = 0.0
    config.train.accumulate_steps = plan["accumulate"]
    # Every row of the dummy batch has a caption of its own, so this is PyTorch's plain contrast.
    config.loss.positives = "sample"
    return config


def serve(side: Any, answer: Callable[[Any], None]) -> None:
    """Runs commands from stdin until it ends."""
    for line in sys.stdin:
        command = line.strip()
        try:
            if command == "step":
                start = time.perf_counter()
                side.step()
                answer(time.perf_counter() - start)
            elif command == "processor_s":
                answer(time.process_time())
            else:
                answer(getattr(side, command)())
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"[:2000]})


def main() -> None:
    # Whatever libraries print goes to stderr: stdout is for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    plan = json.loads(sys.argv[2])
    serve({"ours": OurSide, "torch": TorchSide}[sys.argv[1]](plan), answer)


if __name__ == "__main__":
    main()
