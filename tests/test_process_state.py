"""What a process is changed by: nothing by an import, and mlx-lm only as long as a model is open.

Each test looks at a process of its own, where no other test has opened anything.
"""

import subprocess
import sys

import pytest


def run_alone(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_does_nothing():
    script = "import unlearn_mlx, sys; print(*(name for name in sys.modules if name.startswith('unlearn')))"
    assert run_alone(script) == ["unlearn_mlx"]
    script = "import unlearn_mlx, sys; print('ctypes' in sys.modules, 'mlx.core' in sys.modules)"
    assert run_alone(script) == ["False", "False"]


def test_the_help_needs_neither_mlx_nor_settings():
    script = """
import sys
from unlearn_mlx.cli.main import main
try:
    main(["--help"])
except SystemExit:
    pass
print(*(name in sys.modules for name in ("mlx.core", "mlx_lm", "pydantic", "numpy")))
"""
    assert run_alone(script)[-4:] == ["False"] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="others have a fast BLAS anyway")
def test_the_cpu_is_prepared_once_and_too_late_is_said():
    prepared = "from unlearn_mlx.compute.cpu_setup import prepare_cpu\n"
    early = prepared + "print(prepare_cpu(), prepare_cpu())\nimport mlx.core\nprint(prepare_cpu())"
    assert run_alone(early) == ["True", "True", "True"]
    assert run_alone("import mlx.core\n" + prepared + "print(prepare_cpu(), prepare_cpu())") == ["False"] * 2


def test_mlx_lm_is_as_it_was_once_the_last_model_is_released(tiny_folder):
    script = """
import sys
from mlx_lm.models import llama
names = ("scaled_dot_product_attention", "swiglu")
originals = [getattr(llama, name) for name in names]

def replaced():
    return any(getattr(llama, name) is not original for name, original in zip(names, originals))

def restored():
    return all(getattr(llama, name) is original for name, original in zip(names, originals))

from unlearn_mlx.inference.engine import Engine
from unlearn_mlx.inference.loading import load_by_name
first, second = load_by_name(sys.argv[1]), load_by_name(sys.argv[1])
assert first.sees_prefixes and second.sees_prefixes and replaced()
first.release()
first.release()  # a second time changes nothing
assert second.sees_prefixes and not first.sees_prefixes and replaced()
second.release()
assert restored()
with load_by_name(sys.argv[1]):
    assert replaced()
assert restored()
engine = Engine(sys.argv[1], None)
assert engine.wait_until_ready() and replaced()
engine.close()
assert restored()
print("done")
"""
    assert run_alone(script, tiny_folder) == ["done"]


def test_a_released_model_still_answers_alike(tiny_model):
    from tests.helpers import QUESTIONS, chat_prompt
    from unlearn_mlx.inference.generation import Request, generate

    asked = [Request(question, chat_prompt(tiny_model, question), 12) for question in QUESTIONS]
    answers = generate(tiny_model, asked, 0)
    tiny_model.release()
    assert generate(tiny_model, asked, 0) == answers
