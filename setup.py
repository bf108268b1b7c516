"Install xaimed from settings.ini, and carry the stage notebooks and example configs inside the wheel."
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


class build_with_share(build_py):
    "Copy nbs/ and configs/ to xaimed/_share, where xaimed looks when there is no checkout."

    def run(self):
        super().run()
        if getattr(self, "editable_mode", False): return
        share = Path(self.build_lib) / cfg["lib_path"] / "_share"
        for source, pattern in (("nbs", "*.ipynb"), ("configs/experiments", "*.yaml")):
            target = share / Path(source).name
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted((here / source).glob(pattern)): shutil.copy2(file, target / file.name)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8") if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    url=cfg["git_url"],
    keywords=cfg["keywords"],
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research",
                 "Programming Language :: Python :: 3"],
    packages=find_packages(include=["xaimed", "xaimed.*"]),
    package_data={"xaimed": ["reference/*", "templates/*"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={extra: cfg[f"{extra}_requirements"].split() for extra in ("dev", "distributed", "bench")},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    cmdclass={"build_py": build_with_share},
    zip_safe=False,
)
