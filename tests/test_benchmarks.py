"The page of benchmark results keeps what it has, and takes what a benchmark prints."
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def runner(monkeypatch):
    "benchmarks/all.py as a module, with two benchmarks."
    spec = importlib.util.spec_from_file_location("benchmarks_all", ROOT / "benchmarks" / "all.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BENCHMARKS", {"first": ("The first", ["first.py", "--n", "3"]), "second": ("The second", ["second.py"])})
    return module


def made(folder, name, text): (folder / f"{name}.py").write_text(text)


def run_all(runner, monkeypatch, folder, *arguments):
    monkeypatch.setattr(runner, "HERE", folder)
    monkeypatch.setattr(sys, "argv", ["all.py", "--output", str(folder / "RESULTS.md"), *arguments])
    runner.main()
    return (folder / "RESULTS.md").read_text()


def test_every_named_benchmark_is_there():
    spec = importlib.util.spec_from_file_location("benchmarks_all", ROOT / "benchmarks" / "all.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert [n for n, (_, words) in module.BENCHMARKS.items() if not (ROOT / "benchmarks" / words[0]).is_file()] == []


def test_a_page_holds_command_machine_and_what_was_printed(runner, monkeypatch, tmp_path):
    made(tmp_path, "first", "import sys; print('ratio', sys.argv[2]); print('{\"for\": \"machines\"}')")
    made(tmp_path, "second", "print('ratio 2')")
    text = run_all(runner, monkeypatch, tmp_path)
    assert "`python benchmarks/first.py --n 3`" in text and "ratio 3\n" in text and "ratio 2\n" in text
    assert "machines" not in text.split("## ")[1]
    assert "Python" in text and text.index("The first") < text.index("The second")


def test_only_one_is_made_again_and_a_failure_leaves_the_page(runner, monkeypatch, tmp_path):
    made(tmp_path, "first", "print('earlier figure')")
    made(tmp_path, "second", "print('other')")
    before = run_all(runner, monkeypatch, tmp_path)
    made(tmp_path, "first", "print('later figure')")
    after = run_all(runner, monkeypatch, tmp_path, "--only", "first")
    assert "later figure" in after and "earlier figure" not in after and after.split("## ")[2] == before.split("## ")[2]
    made(tmp_path, "second", "print('half'); raise SystemExit(3)")
    with pytest.raises(SystemExit, match="second.*exit code 3"): run_all(runner, monkeypatch, tmp_path, "--only", "second")
    assert (tmp_path / "RESULTS.md").read_text() == after


def test_an_unknown_benchmark_lists_the_known(runner, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit): run_all(runner, monkeypatch, tmp_path, "--only", "frist")
    assert "Near: first" in capsys.readouterr().err
