import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
MACOS = {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"}
# What each environment file and .venv is for.
PLATFORMS = {"environment.cuda.yaml": LINUX, "environment.metal.yaml": MACOS}


def applies(requirement: Requirement, platform: dict[str, str], extra: str = "") -> bool:
    environment = {**default_environment(), **platform, "extra": extra}
    return requirement.marker is None or requirement.marker.evaluate(environment)  # type: ignore[arg-type]


def requirements(lines: Iterable[str]) -> list[Requirement]:
    return [
        Requirement(text) for line in lines if (text := line.partition("#")[0].strip()) and not text.startswith("-")
    ]


def pins(platform: dict[str, str]) -> dict[str, str]:
    """Package to version, as constraints.txt has it on a platform; every line is one exact version."""
    found: dict[str, str] = {}
    for requirement in requirements((ROOT / "constraints.txt").read_text().splitlines()):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", requirement
        if applies(requirement, platform):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is pinned twice"
            found[name] = specifier.version
    return found


def asked() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return requirements([*project["dependencies"], *(line for line in extras if not line.startswith("scratchlm["))])


def environment_file(name: str) -> tuple[dict[str, object], list[str]]:
    content = yaml.safe_load((ROOT / name).read_text())
    (pip,) = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    return content, pip


@pytest.mark.parametrize("name", PLATFORMS)
def test_no_environment_file_contradicts_the_pins_of_its_platform(name: str) -> None:
    content, pip = environment_file(name)
    assert content["name"] == "scratchlm"
    assert content["channels"] == ["conda-forge", "nodefaults"]
    assert "-c constraints.txt" in pip
    assert "-e ." in pip
    pinned = pins(PLATFORMS[name])
    for requirement in [*requirements(pip), *asked()]:
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_every_platform_has_the_torch_that_is_right_there() -> None:
    assert pins(LINUX)["torch"] == "2.13.0"
    assert pins(MACOS)["torch"] == "2.14.0"
    _, pip = environment_file("environment.metal.yaml")
    (torch,) = [requirement for requirement in requirements(pip) if requirement.name == "torch"]
    for refused in ("2.11.0", "2.13.0", "2.13.1"):
        assert refused not in torch.specifier


def test_the_environment_files_have_a_python_that_the_package_accepts() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in PLATFORMS:
        content, _ = environment_file(name)
        (python,) = [entry for entry in content["dependencies"] if str(entry).startswith("python=")]  # type: ignore[attr-defined]
        assert Version(python.partition("=")[2]) in Requirement(f"python{project['requires-python']}").specifier


@pytest.mark.parametrize("platform", [LINUX, MACOS], ids=["linux", "macos"])
def test_everything_that_the_package_brings_is_pinned(platform: dict[str, str]) -> None:
    pinned, todo, seen = pins(platform), asked(), set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        if name.startswith(("nvidia-", "cuda-", "triton")):  # torch names them itself; they differ by its build
            continue
        assert name in pinned, f"{name} is not in constraints.txt"
        try:
            further = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # a tool that this environment was made without
        todo += [
            part
            for part in map(Requirement, further)
            if any(applies(part, platform, extra) for extra in requirement.extras or {""})
        ]


# Below, setup_env.sh runs with stand-ins for every command that would look at this machine or change it.
PYTHON_STAND_IN = """#!{bash}
# Asked about itself it answers as a real Python does; what would take minutes it writes down.
case "$*" in
    *"-m venv"*)
        echo "venv" >>"$CALLS"
        mkdir -p "${{!#}}/bin"
        cp "$0" "${{!#}}/bin/python"
        ;;
    *"-m pip --version"*) echo "pip 23.2" ;;
    *"--dry-run"*)
        echo "dry run" >>"$CALLS"
        echo "WARNING: noise" >&2
        [ "$ORDINARY_TORCH" != broken ] || exit 1
        if [ "$ORDINARY_TORCH" = installed ]; then echo '{{"install": []}}'; else
            echo '{{"install": [{{"metadata": {{"name": "torch", "version": "'"$ORDINARY_TORCH"'"}}}}]}}'; fi
        ;;
    *"-m pip install"*)
        all="$*"
        echo "pip ${{all#*-m pip install }}" >>"$CALLS"
        [ "${{PIP_BREAKS:-}}" != yes ] || {{ echo "ERROR: no space left"; exit 1; }}
        ;;
    "- cpu" | "- cuda" | "- metal") echo "torch works" ;;
    *) exec "{python}" "$@" ;;
esac
"""
CONDA_STAND_IN = """#!{bash}
echo "{name} $*" >>"$CALLS"
[ "$*" = "env list" ] || exit 0
echo "# conda environments:"
echo "base  *  /opt/conda"
[ "${{HAS_ENVIRONMENT:-}}" != yes ] || echo "scratchlm  /opt/conda/envs/scratchlm"
"""
ORDINARY_COMMANDS = ("awk", "basename", "bash", "cat", "cp", "dirname", "env", "mkdir", "rm", "tail")


class Machine:
    """A stand-in machine: a copy of what setup_env.sh reads, and a PATH with nothing else on it."""

    def __init__(self, folder: Path, system: str, machine: str) -> None:
        self.root, self.bin, self.calls_file = folder / "a clone", folder / "bin", folder / "calls"
        self.root.mkdir()
        self.bin.mkdir()
        self.calls_file.touch()
        for name in ("setup_env.sh", "pyproject.toml", "constraints.txt", *PLATFORMS):
            shutil.copy(ROOT / name, self.root / name)
        for name in ORDINARY_COMMANDS:
            (self.bin / name).symlink_to(str(shutil.which(name)))
        self.bash = str(shutil.which("bash"))
        self.add("uname", f"#!{self.bash}\ncase $1 in -s) echo {system} ;; -m) echo {machine} ;; esac\n")
        self.add_python("python3")
        self.environment = {
            "PATH": str(self.bin),
            "HOME": str(folder),
            "CALLS": str(self.calls_file),
            "ORDINARY_TORCH": "2.13.0+cpu",
        }
        self.environment["TMPDIR"] = str(folder)

    def add(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def add_python(self, name: str) -> None:
        self.add(name, PYTHON_STAND_IN.format(bash=self.bash, python=sys.executable))

    def add_conda(self, name: str) -> None:
        self.add(name, CONDA_STAND_IN.format(bash=self.bash, name=name))

    def add_gpu(self) -> None:
        self.add("nvidia-smi", f"#!{self.bash}\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")

    def setup(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        self.calls_file.write_text("")
        return subprocess.run(
            [self.bash, str(self.root / "setup_env.sh"), *arguments],
            env={**self.environment, **environment},
            cwd=self.bin,  # it must work from any folder
            capture_output=True,
            text=True,
        )

    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def linux(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "Linux", "x86_64")


@pytest.fixture
def mac(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "Darwin", "arm64")


INSTALL = "pip --no-input --disable-pip-version-check -c constraints.txt"


def test_a_linux_machine_without_a_driver_gets_a_venv_for_the_cpu(linux: Machine) -> None:
    linux.add_conda("conda")  # not needed for a CPU
    done = linux.setup()
    assert done.returncode == 0, done.stderr
    assert "Backend cpu (Linux, and nvidia-smi lists no GPU); environment: .venv" in done.stdout
    assert linux.calls() == ["venv", "dry run", f"{INSTALL} --no-deps torch", f"{INSTALL} -e ."]


def test_a_driver_that_does_not_answer_is_no_driver(linux: Machine) -> None:
    linux.add("nvidia-smi", f"#!{linux.bash}\necho 'could not communicate with the driver'; exit 9\n")
    assert "Backend cpu (" in linux.setup().stdout


def test_the_cpu_never_pulls_cuda_libraries(linux: Machine) -> None:
    assert linux.setup(ORDINARY_TORCH="2.13.0").returncode == 0
    cpu_index = "--index-url https://download.pytorch.org/whl/cpu"
    assert linux.calls() == ["venv", "dry run", f"{INSTALL} --no-deps {cpu_index} torch", f"{INSTALL} -e ."]


def test_the_index_of_torch_can_be_named(linux: Machine) -> None:
    linux.setup(ORDINARY_TORCH="2.13.0", SCRATCHLM_TORCH_INDEX="https://mirror/cpu")
    assert f"{INSTALL} --no-deps --index-url https://mirror/cpu torch" in linux.calls()
    linux.add_gpu()
    linux.setup(SCRATCHLM_TORCH_INDEX="https://mirror/cu126")
    assert linux.calls() == ["venv", f"{INSTALL} --no-deps --index-url https://mirror/cu126 torch", f"{INSTALL} -e ."]


def test_a_torch_that_is_there_is_not_installed_again(linux: Machine) -> None:
    linux.setup(ORDINARY_TORCH="installed")
    assert linux.calls() == ["venv", "dry run", f"{INSTALL} -e ."]


def test_a_gpu_without_conda_gets_a_venv_with_ordinary_torch(linux: Machine) -> None:
    linux.add_gpu()
    done = linux.setup()
    assert "Backend cuda (nvidia-smi lists GPU 0: NVIDIA H100); environment: .venv (no conda" in done.stdout
    assert linux.calls() == ["venv", f"{INSTALL} -e ."]


@pytest.mark.parametrize("tool", ["conda", "mamba", "micromamba"])
def test_a_gpu_with_conda_gets_the_conda_environment(linux: Machine, tool: str) -> None:
    linux.add_gpu()
    linux.add_conda(tool)
    done = linux.setup()
    assert (
        f"Backend cuda (nvidia-smi lists GPU 0: NVIDIA H100); environment: conda's scratchlm, by {linux.bin}/{tool}"
        in done.stdout
    )
    assert linux.calls() == [f"{tool} env list", f"{tool} env create -f environment.cuda.yaml"]
    assert not (linux.root / ".venv").exists()
    again = linux.setup(HAS_ENVIRONMENT="yes")
    update = "install" if tool == "micromamba" else "env update"
    assert linux.calls() == [f"{tool} env list", f"{tool} {update} -n scratchlm -f environment.cuda.yaml"]
    assert again.returncode == 0, again.stderr


def test_apple_silicon_with_conda_gets_the_metal_environment(mac: Machine) -> None:
    mac.add_conda("mamba")
    done = mac.setup("--dev")
    assert "Backend metal (macOS on Apple silicon); environment: conda's scratchlm" in done.stdout
    assert mac.calls() == [
        "mamba env list",
        "mamba env create -f environment.metal.yaml",
        "mamba run -n scratchlm python -m pip install -c constraints.txt -e .[dev]",
    ]


def test_apple_silicon_without_conda_gets_a_venv(mac: Machine) -> None:
    done = mac.setup()
    assert (
        "Backend metal (macOS on Apple silicon); environment: .venv (no conda, mamba or micromamba here)" in done.stdout
    )
    assert mac.calls() == ["venv", f"{INSTALL} -e ."]


def test_arguments_override_what_the_machine_looks_like(linux: Machine) -> None:
    linux.add_conda("conda")
    assert "Backend cuda (--backend asked for it); environment: conda's" in linux.setup("--backend", "cuda").stdout
    linux.add_gpu()
    assert "environment: .venv (--venv asked for it)" in linux.setup("--venv").stdout
    assert "Backend cpu (--backend asked for it); environment: .venv" in linux.setup("--backend=cpu").stdout
    assert "dry run" in linux.calls()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--backend", "tpu"], "--backend tpu: no such backend. Take cuda, metal or cpu."),
        (["--backend"], "--backend takes a name: cuda, metal or cpu."),
        (["--backend", "metal"], "--backend metal: Metal needs macOS. Take cuda or cpu."),
        (["--dve"], "unknown argument '--dve'; see ./setup_env.sh --help."),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(linux: Machine, arguments: list[str], line: str) -> None:
    done = linux.setup(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"setup_env.sh: {line}\n")
    assert linux.calls() == []


def test_help_names_every_argument(linux: Machine) -> None:
    done = linux.setup("--help")
    assert done.returncode == 0
    for word in ("--backend", "--venv", "--dev", "SCRATCHLM_TORCH_INDEX"):
        assert word in done.stdout


def test_a_second_run_does_nothing_and_a_changed_pin_updates(linux: Machine) -> None:
    linux.setup("--dev")
    assert linux.calls()[-1] == f"{INSTALL} -e .[dev]"
    for arguments in ((), ("--dev",), ("--venv",)):
        assert ".venv is up to date." in linux.setup(*arguments).stdout
        assert linux.calls() == []
    with (linux.root / "constraints.txt").open("a") as file:
        file.write("# another pin\n")
    linux.setup(ORDINARY_TORCH="installed")
    assert linux.calls() == ["dry run", f"{INSTALL} -e .[dev]"]  # the tools stay once they are there


def test_an_environment_without_the_tools_gets_them_when_asked(linux: Machine) -> None:
    linux.setup()
    linux.setup("--dev", ORDINARY_TORCH="installed")
    assert linux.calls() == ["dry run", f"{INSTALL} -e .[dev]"]


def test_another_backend_makes_the_environment_anew(linux: Machine) -> None:
    linux.setup()
    (linux.root / ".venv" / "old").touch()
    linux.setup("--backend", "cuda")
    assert linux.calls() == ["venv", f"{INSTALL} -e ."]
    assert not (linux.root / ".venv" / "old").exists()


def test_a_moved_clone_makes_its_environment_anew(linux: Machine) -> None:
    linux.setup()
    linux.root = linux.root.rename(linux.root.parent / "moved")
    linux.setup()
    assert linux.calls()[0] == "venv"


def test_a_failed_installation_shows_the_end_of_its_log_and_is_done_again(linux: Machine) -> None:
    done = linux.setup(PIP_BREAKS="yes")
    assert done.returncode == 1
    assert "ERROR: no space left" in done.stderr
    assert re.search(r"setup_env\.sh: that failed after \d+ s; the whole log: .*setup\.log$", done.stderr.strip())
    assert linux.setup().returncode == 0
    assert linux.calls() == ["dry run", f"{INSTALL} --no-deps torch", f"{INSTALL} -e ."]


def test_a_pinned_torch_that_cannot_be_found_is_one_line(linux: Machine) -> None:
    done = linux.setup(ORDINARY_TORCH="broken")
    assert done.returncode == 1
    assert "pip cannot find the torch that constraints.txt pins" in done.stderr.strip().splitlines()[-1]


def test_a_venv_of_another_making_is_never_removed(linux: Machine) -> None:
    (linux.root / ".venv").mkdir()
    (linux.root / ".venv" / "mine").touch()
    done = linux.setup()
    assert done.returncode == 1
    assert done.stderr.startswith("setup_env.sh: .venv is not of this script's making")
    assert (linux.root / ".venv" / "mine").exists()


def test_only_an_older_python_is_one_line(linux: Machine) -> None:
    linux.add("python3", f"#!{linux.bash}\ncase $2 in *print*) echo 3.9 ;; *) exit 1 ;; esac\n")
    done = linux.setup()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("setup_env.sh: Python 3.11 or later is needed, and the newest here is 3.9.")
    (linux.bin / "python3").unlink()
    assert "and none is on PATH" in linux.setup().stderr


def test_a_python_on_path_that_does_not_run_is_passed_over(linux: Machine) -> None:
    linux.add("python3.13", f"#!{linux.bash}\necho 'version 3.13 is not selected' >&2\nexit 127\n")
    done = linux.setup()
    assert done.returncode == 0, done.stderr
    assert f"Making .venv with {linux.bin}/python3 " in done.stdout


def test_machines_without_a_torch_are_told_so(tmp_path: Path) -> None:
    for system, machine, words in (("Darwin", "x86_64", "Intel Macs"), ("MINGW64_NT", "x86_64", "use WSL")):
        (tmp_path / system).mkdir()
        done = Machine(tmp_path / system, system, machine).setup()
        assert done.returncode == 1
        assert words in done.stderr


SCRIPTS = [
    "setup_env.sh",
    ".ci/run",
    *(f"scripts/{name}.sh" for name in ("quickstart", "test", "bench_env", "bench_gpu")),
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_is_whole_bash_that_stops_at_an_error(script: str) -> None:
    text = (ROOT / script).read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    subprocess.run([str(shutil.which("bash")), "-n", str(ROOT / script)], check=True)
    assert os.access(ROOT / script, os.X_OK)
    # What macOS's bash 3.2 does not have.
    assert not re.search(r"mapfile|readarray|declare -A|local -A|\$\{\w+(,,|\^\^)|&>>|\|&", text)


def test_the_hooks_run_the_checks_of_the_tests() -> None:
    hooks = [
        hook
        for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repo["hooks"]
    ]
    checks = re.findall(r"^check (.*?) ?\.?$", (ROOT / "scripts" / "test.sh").read_text(), re.MULTILINE)
    assert len(hooks) == len(checks)
    for hook, check in zip(hooks, checks, strict=True):
        assert f"exec {check.replace(' --check', '')}" in hook["entry"]


def test_ci_is_the_debian_packages_and_the_test_script() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[-1] == 'exec bash scripts/test.sh "$@"'
    assert "apt-get" not in (ROOT / "scripts" / "test.sh").read_text()


SCRATCHLM_STAND_IN = """#!{bash}
echo "$*" >>"$CALLS"
if [ "$1" = fit ]; then
    mkdir -p runs/quickstart/checkpoints
    touch runs/quickstart/checkpoints/{{best,step-00000090,step-00000250}}.ckpt
    echo "$METRICS" >runs/quickstart/metrics.jsonl
fi
"""
FALLING = """{"attempt": 1, "step": 0, "tokens": 0, "val/loss": 9.7, "val/perplexity": 16317.6}
{"attempt": 1, "step": 100, "tokens": 819200, "train/loss": 5.0}
{"attempt": 1, "step": 250, "tokens": 2048000, "val/loss": 9.9, "val/perplexity": 19930.4}
{"attempt": 2, "step": 250, "tokens": 2048000, "val/loss": 4.2, "val/perplexity": 66.7}"""


def quickstart(folder: Path, metrics: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs scripts/quickstart.sh where setup_env.sh and scratchlm are stand-ins; what scratchlm was asked."""
    (folder / "scripts").mkdir(exist_ok=True)
    (folder / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "scripts" / "quickstart.sh", folder / "scripts")
    (folder / "setup_env.sh").write_text("echo .venv is up to date.\n")
    bash = str(shutil.which("bash"))
    for name, text in (
        ("scratchlm", SCRATCHLM_STAND_IN.format(bash=bash)),
        ("python", f'#!{bash}\nPYTHONPATH="{ROOT / "src"}" exec "{sys.executable}" "$@"\n'),
    ):
        (folder / ".venv" / "bin" / name).write_text(text)
        (folder / ".venv" / "bin" / name).chmod(0o755)
    calls = folder / "calls"
    calls.write_text("")
    done = subprocess.run(
        [bash, str(folder / "scripts" / "quickstart.sh")],
        env={**os.environ, "CALLS": str(calls), "METRICS": metrics},
        cwd="/",
        capture_output=True,
        text=True,
    )
    return done, calls.read_text().splitlines()


def test_the_quickstart_prepares_trains_shows_what_was_learnt_and_samples(tmp_path: Path) -> None:
    done, calls = quickstart(tmp_path, FALLING)
    assert done.returncode == 0, done.stderr
    newest = "runs/quickstart/checkpoints/step-00000250.ckpt"
    assert calls == [
        "prepare -c configs/quickstart.yaml",
        "fit -c configs/quickstart.yaml",
        f"generate --checkpoint {newest} --prompt Once upon a time --max_new_tokens 120",
    ]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["0", "0", "9.700", "16,317.6"] in rows
    assert ["250", "2,048,000", "4.200", "66.7"] in rows
    assert "configs/pretrain_220m.yaml" in done.stdout


def test_a_second_quickstart_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    quickstart(tmp_path, FALLING)
    _, calls = quickstart(tmp_path, FALLING)
    assert calls[1] == "fit -c configs/quickstart.yaml --ckpt_path last"


def test_a_quickstart_that_learns_nothing_fails_in_one_line(tmp_path: Path) -> None:
    done, _ = quickstart(tmp_path, "\n".join(FALLING.splitlines()[:3]))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "The validation loss did not fall" in done.stderr
    done, _ = quickstart(tmp_path, '{"attempt": 1, "step": 1, "tokens": 1, "train/loss": 5.0}')
    assert "no validation was logged" in done.stderr
