import errno
import os

import pytest

from edgec.bundle.stage import staged
from edgec.errors import OutputError


def leftovers(folder):
    return [p.name for p in folder.iterdir()]


def test_the_directory_appears_whole(tmp_path):
    with staged(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_text() == "1"
    assert leftovers(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_exception(tmp_path, error):
    with pytest.raises(error), staged(tmp_path / "out") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_text("1")
        raise error
    assert leftovers(tmp_path) == []


def test_an_existing_output_is_refused_and_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("1")
    with pytest.raises(OutputError, match="exists already"), staged(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert (tmp_path / "out" / "mine").exists()


def test_an_output_that_appears_meanwhile_is_kept(tmp_path):
    with pytest.raises(OutputError, match="exists already"), staged(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("1")
    assert leftovers(tmp_path) == ["out"]
    assert (tmp_path / "out" / "theirs").exists()


def test_a_full_disk_says_so(tmp_path):
    with pytest.raises(OutputError, match="the disk is full") as caught, staged(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.exit_code == 2
    assert leftovers(tmp_path) == []


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("1")
    with pytest.raises(OutputError), staged(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")
