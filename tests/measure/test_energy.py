from edgec.measure.energy import POWERCAP, Meter


def zone(tree, folder, name, energy_uj, range_uj=1_000_000_000):
    """Write a zone of a powercap tree; None leaves a file out."""
    path = tree / folder
    path.mkdir(parents=True, exist_ok=True)
    for file, value in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", range_uj)):
        if value is not None:
            (path / file).write_text(f"{value}\n")
    return path


def test_packages_are_added_up_and_nothing_else_is(tmp_path):
    packages = [zone(tmp_path, f"intel-rapl:{n}", f"package-{n}", 5_000_000 * (n + 1)) for n in (0, 1)]
    zone(tmp_path, "intel-rapl:0:0", "core", 3_000_000)  # is part of its package
    zone(tmp_path, "intel-rapl:2", "psys", 90_000_000)  # holds the packages
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000)  # the same package, seen another way
    (tmp_path / "intel-rapl").mkdir()
    meter = Meter(tmp_path)
    before = meter.read_j()
    assert before == (5, 10)
    assert meter.since_j(before) == 0
    (packages[0] / "energy_uj").write_text("7500000")
    (packages[1] / "energy_uj").write_text("10250000")
    assert meter.since_j(before) == 2.75


def test_a_counter_begins_anew(tmp_path):
    package = zone(tmp_path, "intel-rapl:0", "package-0", 90_000_000, 100_000_000)
    meter = Meter(tmp_path)
    before = meter.read_j()
    (package / "energy_uj").write_text("5000000")
    assert meter.since_j(before) == 15


def test_a_counter_that_begins_anew_nobody_knows_where_is_no_guess(tmp_path):
    package = zone(tmp_path, "intel-rapl:0", "package-0", 90_000_000, None)
    meter = Meter(tmp_path)
    before = meter.read_j()
    (package / "energy_uj").write_text("91000000")
    assert meter.since_j(before) == 1
    (package / "energy_uj").write_text("5000000")
    assert meter.since_j(before) is None


def test_what_cannot_be_read_is_no_guess(tmp_path):
    # Not by permissions, which do not stop root: by a folder in the file's place.
    zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    hidden = zone(tmp_path, "intel-rapl:1", "package-1", None)
    (hidden / "energy_uj").mkdir()
    meter = Meter(tmp_path)
    assert meter.read_j() is None
    assert meter.since_j((1.0, 1.0)) is None
    (hidden / "energy_uj").rmdir()
    (hidden / "energy_uj").write_text("nonsense")
    assert meter.read_j() is None
    (hidden / "energy_uj").write_text("2000000")
    assert meter.read_j() == (1, 2)
    (hidden / "energy_uj").unlink()
    assert meter.since_j((1.0, 2.0)) is None


def test_a_machine_that_does_not_tell(tmp_path):
    zone(tmp_path / "other", "dtpm:0", "package-0", 1)
    zone(tmp_path / "cores", "intel-rapl:0", "core", 1)
    for tree in (tmp_path / "none", tmp_path, tmp_path / "other", tmp_path / "cores"):
        assert Meter(tree).read_j() is None
        assert Meter(tree).since_j(None) is None


def test_this_machine_tells_or_does_not():
    meter = Meter()
    before = meter.read_j()
    taken = meter.since_j(before)
    assert (taken is None) == (before is None)
    assert taken is None or taken >= 0
    assert POWERCAP.is_dir() or before is None
