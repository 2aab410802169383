"""The suite about itself: `make quick` is made of files that exist, some of every folder."""

from tests.conftest import LONGEST, QUICK, TESTS


def test_listed_files_exist_once():
    for names in (QUICK, LONGEST):
        assert len(set(names)) == len(names)
        missing = [name for name in names if not (TESTS / name).is_file()]
        assert not missing, f"moved? correct tests/conftest.py: {missing}"


def test_the_inner_loop_touches_every_package():
    folders = {p.relative_to(TESTS).parts[0] for p in TESTS.glob("*/**/test_*.py")}
    assert folders <= {name.split("/")[0] for name in QUICK}
