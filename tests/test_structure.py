"""What holds the package together: its public names, who may import whom, its recipes' configurations."""

import ast
import contextlib
import dataclasses
import importlib
import os
import re
import subprocess
import sys
import tokenize
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

import rmtrl

ROOT = Path(__file__).parents[1]
STAGES = ["data", "reward", "calibration", "generation", "evaluation", "ppo", "monitoring", "serving", "reporting"]
LAYERS = ["quiet", "errors", "types", "io", "processes", "metrics", "models", *STAGES]
TOP = ["tiny", "launch", "cli", "__main__"]  # may import any stage; no stage imports them


PUBLIC = """
BenchmarkCallback CalibratedScorer CalibrationCallback CenterRewardCallback ComposedReward DPOScorer EnsembleScorer
Estimate Generator Guard HeadEnsembleScorer IsotonicCalibrator JudgeScorer LaplaceScorer LengthBiasCallback
MCDropoutScorer MarginCallback OveroptimizationCallback PPOCallback PPOConfig PPOTrainer PairRewards
PreferencePairValidatorCollator RemoteScorer RewardCallback RewardConfig RewardScorer RewardTrainer Scorer
TemperatureCalibrator TransformersGenerator audit best_of_n calibrate compare_policies evaluate
evaluate_policies gate make_splits overoptimization
read_preferences validate
"""


def test_public_names():
    assert rmtrl.__all__ == sorted(rmtrl.__all__) == PUBLIC.split()
    for name in rmtrl.__all__:
        assert getattr(rmtrl, name).__name__.removeprefix("measure_") == name
        assert getattr(rmtrl, name).__doc__


def test_the_docstring_is_a_map_of_all_names_in_the_order_of_a_project():
    table = rmtrl.__doc__.split("\n\n")[1]
    stages = re.findall(r"^([A-Z][a-z]+) +\S", table, re.MULTILINE)
    assert stages == ["Data", "Train", "Judge", "Use", "Watch"]
    assert sorted(set(re.findall(r"\w+", table)) - set(stages)) == rmtrl.__all__


@pytest.mark.parametrize(
    ("name", "meant"),
    [("RewardTrainr", "RewardTrainer"), ("rewardscorer", "RewardScorer"), ("Calibrator", "IsotonicCalibrator"),
     ("ppo_trainer", "PPOTrainer"), ("load_pairs", "read_preferences"),
     ("GRPOTrainer", r"from trl import GRPOTrainer"), ("nothing_like_it", r"help\(rmtrl\) lists")],
)  # fmt: skip
def test_a_name_that_is_none_is_answered_with_those_near(name, meant):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'; .*{meant}"):
        getattr(rmtrl, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}' from 'rmtrl'; .*{meant}"):
        exec(f"from rmtrl import {name}")
    assert not hasattr(rmtrl, name)


def test_stages_are_there_without_an_import_of_their_own():
    code = "import rmtrl; rmtrl.errors.near, rmtrl.metrics.mean_estimate, rmtrl.calibration.calibrate"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("first", ["rmtrl.{name}", "rmtrl.evaluation.{name}", "rmtrl.ppo.{name}", "rmtrl.{stage}"])
@pytest.mark.parametrize("name", ["audit", "gate", "overoptimization", "calibrate", "evaluate"])
def test_no_module_stands_before_a_function_of_its_name(name, first):
    """Whatever was imported before, also a module whose last word is the name."""
    stage = {"calibrate": "calibration", "evaluate": "evaluation"}.get(name, "evaluation")
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(first.format(name=name, stage=stage))
    assert callable(getattr(rmtrl, name)) and not isinstance(getattr(rmtrl, name), type(rmtrl))


def test_import_loads_no_torch(tmp_path):
    code = "import sys, rmtrl; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


SAID_BY_HOSTS = """
import logging
import {module}
from rmtrl import PPOConfig, RewardConfig, RewardScorer
for config in (RewardConfig("x"), PPOConfig("y")):
    assert config.gradient_checkpointing
logging.getLogger("transformers.tokenization_utils_base").warning(
    "Token indices sequence length is longer than the specified maximum sequence length for this model (580 > 512)"
)
logging.getLogger("bitsandbytes.backends.cpu.ops").warning("something else")
logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward")
"""


@pytest.mark.parametrize(("module", "n_lines"), [("rmtrl", 2), ("rmtrl.quiet", 1)])
def test_what_nobody_can_act_on_is_not_said_and_all_else_is(tmp_path, module, n_lines):
    """Of long texts a library lets the host warn; commands and recipes count them themselves."""
    code = SAID_BY_HOSTS.replace("{module}", module)
    plain = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}  # of which transformers prints
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=plain)
    assert (ran.returncode, ran.stdout) == (0, "") and len(ran.stderr.splitlines()) == n_lines
    assert ran.stderr.endswith("something else\n") and ("Token indices" in ran.stderr) == (n_lines == 2)


def layer_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports():
    """Yields (file, module imported) for every import in the package."""
    for path in sorted((ROOT / "rmtrl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield path, node.module


def test_imports_go_one_way():
    seen = 0
    for path, module in imports():
        if not module.startswith("rmtrl."):
            assert not module.startswith(("recipes", "examples", "tests"))
            continue
        importer, imported = path.relative_to(ROOT / "rmtrl").parts[0].removesuffix(".py"), layer_of(module)
        if importer == "__init__" or importer in TOP:
            continue
        assert LAYERS.index(imported) <= LAYERS.index(importer), f"{path} imports {module}"
        seen += 1
    assert seen > 20


def test_torch_and_trl_stay_out_of_the_layers_of_values():
    free = ("errors", "types", "io", "metrics", "data", "calibration", "evaluation")
    for path, module in imports():
        layer = path.relative_to(ROOT / "rmtrl").parts[0].removesuffix(".py")
        if layer in free and path.name != "callback.py":
            assert module.split(".")[0] not in ("torch", "trl", "transformers"), f"{path} imports {module}"
        if layer != "ppo":
            assert not module.startswith("trl.experimental"), path


def test_no_module_imports_itself_by_way_of_others():
    package = ROOT / "rmtrl"
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
             for path in package.rglob("*.py")}  # fmt: skip
    graph = {}
    for name, path in names.items():
        found = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
        modules = {m if (m := f"{node.module}.{part.name}") in names else node.module
                   for node in found for part in node.names}  # fmt: skip
        graph[name] = (modules & set(names)) - {name}
    assert sum(map(len, graph.values())) > 200
    TopologicalSorter(graph).prepare()  # raises on a circle


LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
MOST_CODE_LINES, MOST_FILES = 20_610, 151


def code_lines(path):
    """Returns how many lines of a file hold code: no comment, no docstring, no blank."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, documented)]
    docstrings = [node.body[0] for node in nodes if ast.get_docstring(node, clean=False) is not None]
    with tokenize.open(path) as file:
        tokens = [token for token in tokenize.generate_tokens(file.readline) if token.type not in LAYOUT]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    return len(lines - {line for node in docstrings for line in range(node.lineno, node.end_lineno + 1)})


def test_lines_of_code_are_counted(tmp_path):
    (tmp_path / "file.py").write_text(
        '"""Two\nlines."""\n\n# a comment\nx = """\n\n"""  # one more\n\ndef f():\n    "Doc."\n'
    )
    assert code_lines(tmp_path / "file.py") == 4


def test_the_package_stays_within_its_budget():
    """A ceiling to lower, and to raise by name alone: what is added is paid for, or argued for."""
    files = list((ROOT / "rmtrl").rglob("*.py"))
    assert sum(map(code_lines, files)) <= MOST_CODE_LINES
    assert len(files) <= MOST_FILES


def test_top_level_holds_what_it_should():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {path.split("/")[0] for path in listed.stdout.splitlines()}
    assert top <= {
        "pyproject.toml", "README.md", "rmtrl", "recipes", "tests", "examples", "Makefile", "LICENSE", "CHANGELOG.md",
        "CONTRIBUTING.md", "constraints.txt", "setup.py", ".ci", ".gitignore", ".gitattributes",
    }  # fmt: skip


CONFIGS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))


def test_every_configuration_is_found():
    assert len(CONFIGS) == 17


# recipe, its launcher, its own dataclass
RECIPES = {
    "sft": ("sft_llama", "accelerate launch", "SftRecipeArguments"),
    "rm": ("rm_llama", "accelerate launch", "RewardRecipeArguments"),
    "calibrate": ("calibrate_rm", "python", "CalibrationRecipeArguments"),
    "eval": ("eval_rm", "python", "EvalRecipeArguments"),
    "ppo": ("ppo_llama", "accelerate launch", "PPORecipeArguments"),
    "dpo": ("dpo_llama", "accelerate launch", "DPORecipeArguments"),
    "grpo": ("grpo_llama", "accelerate launch", "GRPORecipeArguments"),
    "monitor": ("monitor", "python", "MonitorRecipeArguments"),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: "/".join(path.parts[-2:]))
def test_a_configuration_is_parsed_by_its_recipe_and_its_header_is_the_command(path, monkeypatch):
    import runpy

    import trl

    from rmtrl.launch import parse_recipe

    stage = path.stem.split("_")[0]
    recipe, launcher, own = RECIPES[stage]
    module = runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="recipe")
    trained = {"rm": rmtrl.RewardConfig, "sft": trl.SFTConfig, "ppo": rmtrl.PPOConfig, "dpo": trl.DPOConfig}
    trained["grpo"] = trl.RLOOConfig  # GRPO's has these fields too
    configs = {stage: (config, trl.ModelConfig) for stage, config in trained.items()}
    dataclass_types = (module[own], *configs.get(stage, ()))
    fields = {field.name for cls in dataclass_types for field in dataclasses.fields(cls)}
    settings = yaml.safe_load(path.read_text())
    assert set(settings) <= fields
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", "--config", str(path)])
    parsed = parse_recipe(dataclass_types, path)
    for name in set(settings) - {"bf16", "report_to"}:  # which a processor may not have, and the host rewrites
        (found,) = [vars(part)[name] for part in parsed if name in vars(part)][:1]
        assert found == settings[name] or str(found).endswith(str(settings[name])), name  # an enumeration's
    header = path.read_text().split("\nmodel_name")[0]
    engine = r"(--config_file recipes/accelerate/(?P<file>\w+)\.yaml )?"
    command = re.match(rf"# {launcher} {engine}recipes/{recipe}\.py --config {path.relative_to(ROOT)}( |\n)", header)
    assert command and (ROOT / "recipes" / "accelerate" / f"{command['file'] or 'ddp'}.yaml").is_file()
    if stage not in ("dpo", "grpo"):
        assert all(f"{what}: " in header for what in ("Hardware", "Memory", "Figures"))


def test_every_file_of_accelerate_is_parsed_and_starts_what_its_header_says():
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    files = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
    kinds = {}
    for path in files:
        args = launch_command_parser().parse_args(["--config_file", str(path), "train.py"])
        settings = load_config_from_file(str(path))
        args, _, _ = _validate_launch_command(args)
        kinds[path.stem] = (settings.distributed_type.value, args.num_processes, args.num_machines)
        assert path.read_text().count(f"accelerate launch --config_file recipes/accelerate/{path.name}") >= 1
        assert args.use_fsdp is (kinds[path.stem][0] == "FSDP")
        if args.use_fsdp:
            assert args.fsdp_state_dict_type == "FULL_STATE_DICT" and not args.fsdp_cpu_ram_efficient_loading
    assert kinds == {
        "cpu_2proc": ("MULTI_GPU", 2, 1), "ddp": ("MULTI_GPU", 8, 1), "fsdp2": ("FSDP", 8, 1),
        "two_machines": ("FSDP", 16, 2), "zero2": ("DEEPSPEED", 8, 1), "zero3": ("DEEPSPEED", 8, 1),
    }  # fmt: skip


def test_files_that_are_no_code_are_package_data():
    (line,) = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("rmtrl = [")]
    patterns = [pattern.strip('", ') for pattern in line.removeprefix("rmtrl = [").rstrip("]").split(",")]
    files = [path for path in (ROOT / "rmtrl").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert len(files) >= 5
    for path in files:
        assert any(path.relative_to(ROOT / "rmtrl").match(pattern) for pattern in patterns), path


def test_the_wheel_holds_the_package_and_the_recipes(tmp_path):
    pytest.importorskip("setuptools", "77")
    command = [sys.executable, "setup.py", "-q", "egg_info", "-e", tmp_path, "build_py", "-d", tmp_path / "built"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    for source, place in (("recipes", "rmtrl/_recipes"), ("rmtrl", "rmtrl")):
        files = [path for path in (ROOT / source).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        missing = [own for own in files if not (tmp_path / "built" / place / own.relative_to(ROOT / source)).is_file()]
        assert len(files) > 30 and missing == []


def test_version_is_that_of_the_changelog():
    assert f"## {rmtrl.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_double_precision_is_the_processors_own():
    """Apple's accelerator has no float64: a tensor goes to the CPU before it becomes one."""
    files = [path for stage in ("reward", "ppo") for path in (ROOT / "rmtrl" / stage).rglob("*.py")]
    assert len(files) > 30
    files.append(ROOT / "rmtrl" / "generation.py")
    calls = [line for path in files for line in path.read_text(encoding="utf-8").splitlines() if ".double()" in line]
    assert calls and not [line for line in calls if "cpu().double()" not in line]


def test_a_recipe_without_settings_of_a_trainer_is_parsed_on_a_machine_without_accelerator(tmp_path, monkeypatch):
    from rmtrl.launch import parse_recipe

    @dataclasses.dataclass
    class Own:
        n: int = 1

    (tmp_path / "own.yaml").write_text("n: 2\n")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["own.py"])
    assert parse_recipe([Own], tmp_path / "own.yaml") == (Own(2),)
