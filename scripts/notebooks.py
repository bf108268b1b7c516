"""Keep notebooks executed, clean and exported.

    python scripts/notebooks.py import DRAFT.py     a jupytext text file into nbs/, ids and outputs of unchanged cells kept
    python scripts/notebooks.py export [NAME ...]   notebooks to xaimed/*.py
    python scripts/notebooks.py build  [NAME ...]   export, execute in place, clean, export
    python scripts/notebooks.py readme              README.md from nbs/index.ipynb
    python scripts/notebooks.py docs [--check]      the site in _docs/; --check fails on a broken link or page
    python scripts/notebooks.py check               fail when a notebook is not clean or the export is not in step
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
BIN = Path(sys.executable).parent


def run(*command, **kwargs):
    subprocess.run([str(c) for c in command], check=True, cwd=kwargs.pop("cwd", ROOT), **kwargs)


def paths(names):
    found = [NBS / f"{Path(n).stem}.ipynb" for n in names] if names else sorted(NBS.glob("*.ipynb"))
    for p in found:
        if not p.exists(): raise SystemExit(f"no notebook {p.name} in nbs/; there are: {', '.join(q.name for q in sorted(NBS.glob('*.ipynb')))}")
    return found


def import_text(draft):
    draft = Path(draft).resolve()
    target = NBS / f"{draft.stem}.ipynb"
    flags = ["--update"] if target.exists() else []
    run(BIN / "jupytext", *flags, "--to", "ipynb", "--output", target, draft)
    notebook = json.loads(target.read_text())
    notebook["metadata"] = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def export(names):
    from nbdev.export import nb_export
    with FileLock(ROOT / ".git" / "notebooks.lock"):
        if names:
            for p in paths(names): nb_export(p, lib_path=ROOT / "xaimed")
        else: run(BIN / "nbdev_export")


def execute(path):
    "Run one notebook in its folder with this environment's own kernel and store the outputs."
    import nbformat
    from nbclient import NotebookClient
    with tempfile.TemporaryDirectory() as home:
        kernel = Path(home) / "kernels" / "xaimed-build"
        kernel.mkdir(parents=True)
        (kernel / "kernel.json").write_text(json.dumps({
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "xaimed build", "language": "python"}))
        os.environ["JUPYTER_PATH"] = home
        os.environ["XAIMED_PROGRESS"] = ""
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=900, kernel_name="xaimed-build", resources={"metadata": {"path": str(NBS)}}).execute()
    for cell in notebook.cells:  # times, versions and the commit belong in a run's page, not in the stored one
        if "volatile" in cell.metadata.get("tags", []): cell.outputs = []
    notebook.metadata["kernelspec"] = {"display_name": "python3", "language": "python", "name": "python3"}
    nbformat.write(notebook, path)


def build(names):
    export(names)
    for p in paths(names):
        print(f"executing {p.name}", flush=True)
        execute(p)
        run(BIN / "nbdev_clean", "--fname", p)
    export(names)


def readme(target=ROOT / "README.md"):
    "Write the home page as plain Markdown: text and code, front matter as a heading."
    cells = json.loads((NBS / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    parts = ["<!-- made from nbs/index.ipynb by `make notebooks`; edit it there -->"]
    for cell in cells:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown": parts.append(source)
        elif source:
            code = "\n".join(line for line in source.splitlines() if not line.startswith("#|"))
            parts.append(f"```python\n{code.strip()}\n```")
    target.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def docs(checked=False):
    "Process the pages with nbdev and render them with smalldocs into _docs/."
    pages, site = ROOT / "_proc", ROOT / "_docs"
    run(sys.executable, "-c", "from nbdev.serve import proc_nbs; proc_nbs(n_workers=0, force=True)")
    for p in pages.glob("*.ipynb"):  # nbdev's front matter names an output file; pages are called after their notebooks here
        notebook = json.loads(p.read_text(encoding="utf-8"))
        head = notebook["cells"][0]
        head["source"] = [line for line in head["source"] if not line.startswith("output-file:")]
        p.write_text(json.dumps(notebook), encoding="utf-8")
    if checked: run(BIN / "smalldocs", "check", pages)
    run(BIN / "smalldocs", "render", pages, "--quiet", *(["--strict"] if checked else []))
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(pages / "_site", site)
    print("pages built in _docs/")


def check():
    "Clean and export copies beside the originals and compare: nothing in the checkout is changed."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy.mkdir()
        for name in ("nbs", "xaimed"): shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("settings.ini", "setup.py", "_quarto.yml", "pyproject.toml"):
            if (ROOT / name).exists(): shutil.copy2(ROOT / name, copy / name)
        run(BIN / "nbdev_clean", cwd=copy)
        run(BIN / "nbdev_export", cwd=copy)
        stale = [f"nbs/{p.name} is not clean" for p in sorted(NBS.glob("*.ipynb")) if p.read_bytes() != (copy / "nbs" / p.name).read_bytes()]
        modules = {p.name for folder in (ROOT, copy) for p in (folder / "xaimed").glob("*.py")}
        for name in sorted(modules):
            here, there = ROOT / "xaimed" / name, copy / "xaimed" / name
            if not here.exists() or not there.exists() or here.read_bytes() != there.read_bytes(): stale.append(f"xaimed/{name} is not in step with the notebooks")
        readme(copy / "README.md")
        if (ROOT / "README.md").read_bytes() != (copy / "README.md").read_bytes(): stale.append("README.md is not in step with nbs/index.ipynb")
    if stale: raise SystemExit("\n".join([*stale, "mend: make notebooks"]))
    print("notebooks clean, export in step")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("import", "export", "build", "readme", "docs", "check"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--check", action="store_true", help="with docs: fail on a broken link or page")
    args = parser.parse_args()
    if args.command == "import": [import_text(n) for n in args.names]
    elif args.command == "export": export(args.names)
    elif args.command == "build": build(args.names)
    elif args.command == "readme": readme()
    elif args.command == "docs": docs(args.check)
    else: check()


if __name__ == "__main__": main()
