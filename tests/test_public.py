"""The public surface: complete, sorted, documented, and free of side effects."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import mechunlearn as mu

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(mu.__path__, "mechunlearn.")
    if not module.name.endswith("__main__")
)


def test_all_is_sorted_and_names_everything_that_is_imported_on_purpose() -> None:
    assert mu.__all__ == sorted(mu.__all__)
    assert all(hasattr(mu, name) for name in mu.__all__)


def test_the_public_names_are_these() -> None:
    values = {
        "ClassResult",
        "CountCurve",
        "Delta",
        "Edit",
        "EdgeScores",
        "EditSequence",
        "Engine",
        "Fact",
        "Facts",
        "History",
        "Hook",
        "HookedModel",
        "Limits",
        "Localization",
        "Optimizer",
        "Recipe",
        "Report",
        "Scores",
        "Site",
        "SizeCurve",
        "Stop",
    }
    corruptions = {"MeanAblation", "Noise", "OtherSubject", "Resample", "ZeroAblation"}
    hooks = {"ablate", "cache", "noise", "patch", "patch_middle", "steer"}
    verbs = {
        "activation_patch",
        "attribution",
        "audit",
        "causal_trace",
        "count_curve",
        "diff",
        "direct_logit_attribution",
        "edge_attribution",
        "edit",
        "edit_sequence",
        "edit_size_curve",
        "fact_lookup",
        "fit_probes",
        "forget_class",
        "logit_lens",
        "noised_embeddings",
        "paired_difference",
        "path_hooks",
        "path_lookup",
        "path_patch",
        "probe",
        "refit",
        "score",
        "trace_hooks",
        "validate",
        "verify",
    }
    rest = {"Stop", "attacks", "closed_form", "objectives", "whp", "world"}
    assert set(mu.__all__) == values | corruptions | hooks | verbs | rest


def test_everything_public_is_documented_with_an_example_where_it_can_be_called() -> None:
    for name in mu.__all__:
        thing = getattr(mu, name)
        assert inspect.getdoc(thing), f"{name} has no docstring"
        if inspect.isfunction(thing):
            assert ">>>" in (inspect.getdoc(thing) or ""), f"{name} has no example"


@pytest.mark.parametrize("name", MODULES)
def test_every_example_in_a_docstring_runs(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS, extraglobs={"mu": mu})
    assert result.failed == 0


def test_importing_changes_nothing_and_pulls_in_nothing_heavy() -> None:
    code = (
        "import random, numpy, torch, sys\n"
        "before = torch.random.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled()\n"
        "drawn = random.getstate(), numpy.random.get_state()[1].tolist()\n"
        "import transformer_lens\n"
        "state = torch.random.get_rng_state()\n"
        "import mechunlearn\n"
        "assert torch.equal(state, torch.random.get_rng_state())\n"
        "assert before[1:] == (torch.get_num_threads(), torch.is_grad_enabled())\n"
        "assert drawn == (random.getstate(), numpy.random.get_state()[1].tolist())\n"
        "heavy = {'sklearn', 'peft', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
