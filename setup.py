"""What `setup.cfg`, where all else stands, cannot say: the folder ``configs/`` is installed as ``pfedmma/configs/``."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["pfedmma*"]), "pfedmma.configs"], package_dir={"pfedmma.configs": "configs"})
