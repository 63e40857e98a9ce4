"""What the service may change, how far, how often; what it leaves behind; and the way back."""

import difflib
import errno
import json
import math
import os
import tomllib

import pytest

from mutation_worlds import HOUR_NS, Quick, World
from usp_daemon.config import (
    LOCKED,
    MUTABLE,
    SPECS,
    ConfigMutationError,
    ConfigMutator,
    ConfigSource,
    Move,
    MutationFailedError,
    MutationOutcome,
    MutationRejectedError,
    ParameterClass,
    step_toward,
)
from usp_daemon.config._edit import edit_toml
from usp_daemon.config._retired import RETIRED

K, ALPHA, RATE = "orchestration.cusum_k", "orchestration.volatility_alpha", "orchestration.learning_rate"
TEXT = """\
# what a person wrote
[orchestration]
cusum_k   = 0.5    # the allowance
learning_rate = 0.01
[io]
"""


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, TEXT)


def apply(world, changes, **options):
    return world.mutator(**options).apply(changes, trigger="test", evidence={"crps": 0.9})


def rejected(world, changes, **options):
    with pytest.raises(MutationRejectedError) as caught:
        apply(world, changes, **options)
    assert world.file.read_bytes() == world.first or "MUTATION_APPLIED" in world.events()
    assert world.events()[-1] == "MUTATION_REJECTED"
    return {problem.path: str(problem) for problem in caught.value.problems}


# the policy


def test_the_mutable_keys_are_the_24_of_the_specification_and_none_is_locked():
    assert len(MUTABLE) == 31
    assert set(MUTABLE) <= set(SPECS)
    assert not set(MUTABLE) & LOCKED
    assert set(LOCKED) <= set(SPECS)
    assert all(key.spec.key.parameter_class is not ParameterClass.LOCKED for key in MUTABLE.values())
    levels = {path for path, key in MUTABLE.items() if key.move is Move.LEVEL}
    assert levels == {
        f"kernels.{name}" for name in ("log_sig_depth", "wtmm_buffer_size", "dgm_width_size", "dgm_depth")
    }


def test_the_specifications_locked_keys_are_locked_or_gone():
    named = {
        "schema_version", "jax_platforms", "jax_default_dtype", "float_precision", "staleness_ttl_ns",
        "snapshot_format", "snapshot_hash_algorithm", "snapshot_compression", "telemetry_hash_interval_steps",
        "n_trials", "n_startup_trials", "multivariate", "train_ratio", "n_folds", "snapshot_path",
        "telemetry_buffer_maxlen", "credentials_vault_path", "snapshot_integrity_hash_algorithm",
        "allowed_mutation_rate_per_hour", "jax_platform", "max_deep_tuning_iterations", "checkpoint_path",
        "mutation_protocol_version"
    }  # fmt: skip
    locked = {SPECS[path].name for path in LOCKED}
    for name in named:
        assert name in locked or name in RETIRED, name


def test_every_other_key_is_refused(tmp_path):
    others = {path: spec.default for path, spec in SPECS.items() if path not in MUTABLE}
    problems = rejected(World(tmp_path), others)
    assert set(problems) == set(others)
    assert all("a key that the service may change" in problem for problem in problems.values())


def test_everything_that_speaks_against_it_comes_at_once(world):
    problems = rejected(
        world,
        {K: 2.0, "kernels.dgm_width_size": 96, "kafka.group": "x", "no.such": 1, ALPHA: "fast", RATE: math.nan,
         "kernels.log_sig_depth": 5, "orchestration.sinkhorn_epsilon_min": True},
    )  # fmt: skip
    assert set(problems) == {
        K, "kernels.dgm_width_size", "kafka.group", "no.such", ALPHA, RATE, "kernels.log_sig_depth",
        "orchestration.sinkhorn_epsilon_min",
    }  # fmt: skip
    assert world.file.read_bytes() == world.first


def test_combinations_are_judged_with_what_stands(tmp_path):
    world = World(tmp_path, "[orchestration]\nsinkhorn_epsilon_0 = 0.05\nsinkhorn_epsilon_min = 0.04\n")
    assert "orchestration.sinkhorn_epsilon_min" in rejected(world, {"orchestration.sinkhorn_epsilon_min": 0.06})
    apply(world, {"orchestration.sinkhorn_epsilon_min": 0.06, "orchestration.sinkhorn_epsilon_0": 0.07})


def test_what_the_environment_sets_cannot_be_changed(tmp_path):
    world = World(tmp_path, TEXT, USP_ORCHESTRATION__CUSUM_K="0.6")
    assert "USP_ORCHESTRATION__CUSUM_K stands above" in rejected(world, {K: 0.7})[K]


def test_secrets_reach_no_log(world):
    rejected(world, {"kafka.sasl_password": "hunter2", "made.up": "hunter2"})
    assert b"hunter2" not in world.log.read_bytes()


# the trust region


@pytest.mark.parametrize(
    ("path", "start", "inside", "outside"),
    [
        (K, 0.5, [0.25, 0.75], [0.2499, 0.7501]),
        ("kernels.kernel_ridge_lambda", 1e-6, [5e-7, 1.5e-6], [1.51e-6, 1e-3]),
        ("orchestration.grace_period_steps", 0, [1], [2]),
        ("orchestration.grace_period_steps", 1, [0, 2], [3]),
        ("orchestration.entropy_window", 100, [50, 150], [49, 151]),
        ("kernels.log_sig_depth", 3, [2, 4], [1, 5]),
        ("kernels.dgm_depth", 4, [3, 5], [2, 6]),
        ("kernels.dgm_width_size", 64, [32, 128], [256]),
        ("kernels.wtmm_buffer_size", 128, [64, 256], [512]),
    ],
)
def test_one_change_goes_half_as_far_or_one_level(tmp_path, path, start, inside, outside):
    section, _, name = path.partition(".")
    for number, value in enumerate(outside):
        world = World(tmp_path / f"out{number}", f"[{section}]\n{name} = {start}\n")
        assert "expected a move of" in rejected(world, {path: value})[path]
    for number, value in enumerate(inside):
        world = World(tmp_path / f"in{number}", f"[{section}]\n{name} = {start}\n")
        assert apply(world, {path: value}).delta == {path: [start, value]}
        assert world.settings()[path] == value


def test_auto_is_left_only_by_somebody_who_knows_what_it_stands_for(world):
    path = "orchestration.cusum_h"
    assert "nobody knows how far" in rejected(world, {path: 10.0})[path]
    assert apply(world, {path: 10.0}, resolve_fn=lambda path: 9.0).delta == {path: ["auto", 10.0]}


def test_steps_toward_a_far_value_arrive(tmp_path):
    world = World(tmp_path, "[security]\nmin_ticks_between_mutations = 0\n")
    wanted = {K: 1.9, "kernels.wtmm_buffer_size": 512, "kernels.log_sig_depth": 1, "orchestration.entropy_window": 17}
    for _ in range(8):
        step = step_toward(world.settings(), wanted, max_relative=0.5)
        apply(world, step)
        if step == wanted:
            break
    assert {path: world.settings()[path] for path in wanted} == wanted
    assert len([event for event in world.events() if event == "MUTATION_APPLIED"]) == 4


# what an applied change leaves behind


def test_an_applied_change_is_in_the_file_and_in_the_log(world):
    mutation = apply(world, {RATE: 0.015})
    assert (mutation.outcome, mutation.wrote_to) == (MutationOutcome.APPLIED, world.file)
    assert world.settings().orchestration.learning_rate == 0.015
    (line,) = world.lines()
    assert line["event"] == "MUTATION_APPLIED"
    assert line["delta"] == {RATE: [0.01, 0.015]}
    assert line["evidence"] == {"crps": 0.9}
    assert (line["trigger"], line["who"], line["mutation"]) == ("test", "tester", mutation.id)
    assert (line["config_hash_before"], line["config_hash_after"]) == (mutation.hash_before, mutation.hash_after)
    assert line["config_hash_after"] == world.settings().content_hash()
    assert (world.state / "backups" / line["backup"]).read_bytes() == world.first
    assert (world.state / "backups" / line["backup"]).stat().st_mode & 0o777 == 0o600
    assert world.changes_and_undoes() == []


def test_evidence_of_zero_and_of_nothing_finite_is_kept_as_it_is(world):
    world.mutator().apply({RATE: 0.015}, trigger="test", evidence={"zero": 0.0, "nan": math.nan, "inf": [-math.inf]})
    assert world.lines()[0]["evidence"] == {"zero": 0.0, "nan": "nan", "inf": ["-inf"]}


def test_what_is_so_already_is_no_change(world):
    assert apply(world, {K: 0.5}).outcome is MutationOutcome.UNCHANGED
    assert world.lines() == []


def test_too_much_evidence_is_refused(world):
    with pytest.raises(MutationRejectedError, match="evidence"):
        world.mutator().apply({RATE: 0.015}, trigger="test", evidence={"text": "x" * 300_000})
    assert world.log.stat().st_size < 10_000


def test_mode_owner_and_links_stay(world, tmp_path):
    link = tmp_path / "link.toml"
    link.symlink_to("etc/config.toml")
    world.file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(world.file, 12345, 54321)
    before = world.file.stat()
    world.file, target = link, world.file
    mutation = apply(world, {K: 0.6})
    assert mutation.wrote_to == target
    assert link.is_symlink()
    after = target.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino


def changed_lines(before, after):
    lines = difflib.ndiff(before.decode().splitlines(keepends=True), after.decode().splitlines(keepends=True))
    return [line for line in lines if line[0] in "+-"]


def another(path):
    spec = SPECS[path]
    if path == "orchestration.cusum_h":
        return 9.5
    if spec.key.power_of_two:
        return spec.default // 2
    return spec.default + 1 if spec.kind is int else spec.default * 0.75


@pytest.mark.parametrize("path", MUTABLE)
def test_the_real_file_changes_in_one_line_for_every_mutable_key(repository_root, path):
    before = (repository_root / "config" / "config.toml").read_bytes()
    after = edit_toml(before, {path: another(path)})
    removed, added = changed_lines(before, after)
    name = path.partition(".")[2]
    assert removed.startswith(f"- {name} = ")
    assert added.startswith(f"+ {name} = ")
    assert ConfigSource("x.toml", {}).judge(after, None).settings[path] == another(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[orchestration]\ncusum_k   =  0.5   # why\n", "[orchestration]\ncusum_k   =  0.6   # why\n"),
        ("[orchestration]\r\ncusum_k = 0.5 # why\r\n\r\n# end", "[orchestration]\r\ncusum_k = 0.6 # why\r\n\r\n# end"),
        ("\ufeff[orchestration]\ncusum_k = 0.5", "\ufeff[orchestration]\ncusum_k = 0.6"),
        ("orchestration = { cusum_k = 0.5, sinkhorn_alpha=0.4 } # x\n",
         "orchestration = { cusum_k = 0.6, sinkhorn_alpha=0.4 } # x\n"),
        ("orchestration.cusum_k = 0.5\n", "orchestration.cusum_k = 0.6\n"),
        ('["orchestration"]\n"cusum_k" = 0.5\n', '["orchestration"]\n"cusum_k" = 0.6\n'),
        ("[orchestration]\n# é €\ncusum_k = 0.5\n[core]\n", "[orchestration]\n# é €\ncusum_k = 0.6\n[core]\n"),
    ],
)  # fmt: skip
def test_every_way_of_writing_it_stays(before, after):
    assert edit_toml(before.encode(), {K: 0.6}).decode() == after


def test_what_the_file_leaves_out_is_added_and_the_rest_stays():
    before = b"# top\n[orchestration]\nsinkhorn_alpha = 0.4 # x\n\n# next\n[core]\n"
    after = edit_toml(before, {K: 0.6, "kernels.sde_dt": 0.02})
    assert all(line.startswith("+") for line in changed_lines(before, after))
    assert tomllib.loads(after.decode()) == {
        "orchestration": {"sinkhorn_alpha": 0.4, "cusum_k": 0.6}, "core": {}, "kernels": {"sde_dt": 0.02}
    }  # fmt: skip


# how often


def free(world, **options):
    """Ten different small changes, one after the other."""
    value = world.settings().orchestration.cusum_k
    return apply(world, {K: 0.5 if value != 0.5 else 0.55}, **options)


def test_at_most_so_many_an_hour_and_a_restart_opens_nothing(world):
    for _ in range(10):
        free(world)
        world.clocks.go_on(60)
    assert "at most 10 changes in an hour" in rejected(world, {K: 0.6})["security.allowed_mutation_rate_per_hour"]
    world.clocks.go_on(3600 - 600 - 1)
    rejected(world, {K: 0.6})
    world.clocks.go_on(2)
    free(world)
    rejected(world, {K: 0.6})


def test_refused_ones_do_not_count(world):
    for _ in range(20):
        rejected(world, {K: 1.9})
    free(world)


@pytest.mark.parametrize("is_new_boot", [False, True])
@pytest.mark.parametrize("jump_h", [-100_000, -2, 0])
def test_a_clock_that_goes_back_neither_opens_nor_locks_for_ever(world, jump_h, is_new_boot):
    for _ in range(10):
        free(world)
    world.clocks.wall_ns += jump_h * HOUR_NS
    if is_new_boot:
        world.clocks.restart_machine()
    rejected(world, {K: 0.6})
    world.clocks.go_on(3590)
    rejected(world, {K: 0.6})
    world.clocks.go_on(20)
    free(world)


def test_a_clock_that_jumps_ahead_opens_nothing(world):
    for _ in range(10):
        free(world)
    world.clocks.wall_ns += 5 * HOUR_NS
    rejected(world, {K: 0.6})


def test_so_many_ticks_apart_also_after_a_restart(world):
    free(world, ticks_fn=lambda: 5000)
    problem = rejected(world, {K: 0.6}, ticks_fn=lambda: 5999)["security.min_ticks_between_mutations"]
    assert "at least 1000 ticks" in problem and "got 999" in problem
    free(world, ticks_fn=lambda: 6000)
    # another process counts from 0: only its own ticks are known to have come later
    limiter = json.loads((world.state / "limiter.json").read_text())
    limiter["done"][-1]["process"]["pid"] += 1
    (world.state / "limiter.json").write_text(json.dumps(limiter))
    rejected(world, {K: 0.6}, ticks_fn=lambda: 999)
    free(world, ticks_fn=lambda: 1000)


def test_a_record_that_was_destroyed_counts_as_a_full_hour(world):
    free(world)
    (world.state / "limiter.json").write_bytes(b"\0")
    rejected(world, {K: 0.6})
    world.clocks.go_on(3601)
    free(world)


def test_none_at_all_where_none_is_allowed(tmp_path):
    rejected(World(tmp_path, "[security]\nallowed_mutation_rate_per_hour = 0\n"), {K: 0.6})


def test_limits_are_those_in_force_whatever_the_file_has_come_to_say(world):
    mutator = world.mutator()
    text = world.file.read_text() + "[security]\nmax_relative_change = 1.0\n"
    world.file.write_text(text)
    with pytest.raises(MutationRejectedError):
        mutator.apply({K: 0.9}, trigger="test")


# the way back, and what is not tried again


def test_rollback_restores_the_file_to_the_last_byte(world):
    mutation = apply(world, {K: 0.6, ALPHA: 0.12})
    undone = world.mutator().rollback(reason="worse")
    assert undone.outcome is MutationOutcome.ROLLED_BACK
    assert undone.delta == {K: [0.6, 0.5], ALPHA: [0.12, 0.1]}
    assert world.file.read_bytes() == world.first
    assert world.events() == ["MUTATION_APPLIED", "MUTATION_ROLLED_BACK"]
    assert world.lines()[1]["undone"] == [mutation.id]
    assert world.lines()[1]["reason"] == "worse"
    with pytest.raises(ConfigMutationError, match="no change that still stands"):
        world.mutator().rollback()


def test_rollback_leaves_what_a_person_has_changed_since(world):
    apply(world, {K: 0.6, ALPHA: 0.12})
    text = world.file.read_text().replace("cusum_k   = 0.6", "cusum_k   = 0.65") + "# a remark\n"
    world.file.write_text(text)
    undone = world.mutator().rollback()
    assert undone.delta == {ALPHA: [0.12, 0.1]}
    assert world.settings().orchestration.cusum_k == 0.65
    assert "# a remark" in world.file.read_text()
    assert world.lines()[-1]["reason"] == "left as somebody has changed them: orchestration.cusum_k"


def test_rollbacks_go_back_one_after_the_other(world):
    values = [0.5, 0.6, 0.7, 0.8]
    for value in values[1:]:
        apply(world, {K: value})
    for value in reversed(values[:-1]):
        world.mutator().rollback()
        assert world.settings().orchestration.cusum_k == value
    assert world.file.read_bytes() == world.first


@pytest.mark.parametrize("which", ["file", "settings", "epoch"])
def test_rollback_to_a_former_configuration(world, which):
    mutator = world.mutator()
    mutator.mark_epoch(7)
    first = apply(world, {K: 0.6})
    world.file.write_text(world.file.read_text() + "# a remark\n")
    apply(world, {K: 0.7})
    wanted = {"file": first.backup[:12], "settings": first.hash_before[:12], "epoch": "7"}[which]
    undone = world.mutator().rollback(wanted)
    assert undone.delta == {K: [0.7, 0.5]}
    assert world.file.read_bytes() == world.first
    assert len(world.lines()[-1]["undone"]) == 2
    with pytest.raises(ConfigMutationError, match="no configuration under"):
        world.mutator().rollback("ffffffff")
    # and forward again, to what stood before the way back
    world.mutator().rollback(undone.hash_before[:12])
    assert world.settings().orchestration.cusum_k == 0.7


@pytest.mark.parametrize("keep", [1, 3])
def test_marks_do_not_push_changes_out_of_the_history(tmp_path, keep):
    world = World(tmp_path, f"[orchestration]\ncusum_k = 0.5\n[io]\nconfig_backups_keep = {keep}\n")
    world.mutator().apply({K: 0.6}, trigger="test")
    for number in range(1, 10):
        world.mutator().mark_epoch(number)
    assert len(world.mutator().history.entries()) == 1 + keep
    world.mutator().rollback()
    assert world.settings().orchestration.cusum_k == 0.5


def test_a_hash_means_a_change_even_where_an_epoch_has_the_same_settings(tmp_path):
    world = World(tmp_path, "[orchestration]\ncusum_k = 0.5\n")
    changed = world.mutator().apply({K: 0.6}, trigger="test")
    made = world.file.read_bytes()
    world.file.write_bytes(made + b"# a remark\n")
    world.mutator().mark_epoch(2)
    world.mutator().rollback(changed.hash_after[:12])
    assert world.file.read_bytes() == made


@pytest.mark.parametrize("damage", ["half of it is rubbish", "nothing is left"])
def test_rollback_heals_a_file_that_is_broken(world, damage):
    mutation = apply(world, {K: 0.6})
    if damage == "nothing is left":
        world.file.unlink()
        world.environ = {"USP_IO__STATE_PATH": str(world.state), "USP_IO__MUTATIONS_LOG": str(world.log)}
    else:
        world.file.write_bytes(world.file.read_bytes() + b"[[[ \xff")
    with pytest.raises(MutationFailedError, match="name the one to go back to"):
        world.mutator().rollback()
    world.mutator().rollback(mutation.hash_after[:10])
    assert world.settings().orchestration.cusum_k == 0.6


@pytest.fixture
def tabu(world):
    apply(world, {K: 0.6, ALPHA: 0.12})
    world.mutator().rollback(reason="worse")
    return world


def test_what_was_rolled_back_is_not_tried_again_for_a_while(tabu):
    assert "was not rolled back lately" in "".join(rejected(tabu, {K: 0.6, ALPHA: 0.12}).values())
    rejected(tabu, {K: 0.61, ALPHA: 0.119})  # nearly the same
    tabu.clocks.go_on(24 * 3600 - 60)
    rejected(tabu, {K: 0.6, ALPHA: 0.12})
    tabu.clocks.go_on(120)
    apply(tabu, {K: 0.6, ALPHA: 0.12})


def test_something_else_may_be_tried(tabu):
    apply(tabu, {K: 0.6})  # alone
    apply(tabu, {RATE: 0.012})


def test_the_other_half_of_what_was_rolled_back_may_not_be_added(tabu):
    apply(tabu, {K: 0.6})
    rejected(tabu, {ALPHA: 0.12})
    apply(tabu, {ALPHA: 0.08})


@pytest.mark.parametrize("jump_h", [-1000, 1000])
def test_tabu_and_a_clock_that_is_set(tabu, jump_h):
    tabu.clocks.wall_ns += jump_h * HOUR_NS
    rejected(tabu, {K: 0.6, ALPHA: 0.12})
    tabu.clocks.go_on(24 * 3600 + 60)
    apply(tabu, {K: 0.6, ALPHA: 0.12})


def test_kept_and_proposed(world):
    applied = apply(world, {K: 0.6})
    kept = world.mutator().keep(applied.id, reason="better", evidence={"ratio": 0.97})
    assert (kept.outcome, kept.id) == (MutationOutcome.KEPT, applied.id)
    before = world.file.read_bytes()
    proposed = world.mutator().propose({K: 1.9, "kernels.log_sig_depth": 4}, trigger="test", evidence={"ratio": 0.9})
    assert proposed.outcome is MutationOutcome.PROPOSED
    assert world.file.read_bytes() == before
    document = json.loads(proposed.wrote_to.read_text())
    assert document["evidence"] == {"ratio": 0.9}
    assert not document["is_within_one_change"]
    assert tomllib.loads(document["toml"]) == {"orchestration": {"cusum_k": 1.9}, "kernels": {"log_sig_depth": 4}}
    assert world.events() == ["MUTATION_APPLIED", "MUTATION_KEPT", "PROPOSAL"]
    with pytest.raises(MutationRejectedError):
        world.mutator().propose({K: 99.0}, trigger="test")
    world.mutator().rollback()  # what was kept may still be taken back by hand
    assert world.settings().orchestration.cusum_k == 0.5


def test_backups_are_let_go_of(tmp_path):
    world = World(tmp_path, "[security]\nallowed_mutation_rate_per_hour = 100\n[io]\nconfig_backups_keep = 3\n")
    for number in range(8):
        apply(world, {K: 0.5 + 0.01 * (number + 1)})
    assert len(json.loads((world.state / "history.json").read_text())["entries"]) == 3
    assert len(list((world.state / "backups").iterdir())) == 4


# where the file cannot be written


class ReadOnly(Quick):
    """A file system in which one directory, or one file, cannot be written."""

    def __init__(self, directory, number, *, at):
        self.directory, self.number, self.at = directory, number, at

    def refuse(self, path, call):
        if path.parent == self.directory and call == self.at:
            raise OSError(self.number, os.strerror(self.number), str(path))

    def open_new(self, path, mode):
        self.refuse(path, "open")
        return super().open_new(path, mode)

    def replace(self, source, target):
        self.refuse(target, "replace")
        super().replace(source, target)


@pytest.mark.parametrize(
    ("number", "at"),
    [(errno.EROFS, "open"), (errno.EACCES, "open"), (errno.EPERM, "replace"), (errno.EBUSY, "replace")],
)
def test_a_file_that_cannot_be_written_falls_back_to_the_overlay(world, number, at):
    disk = ReadOnly(world.file.parent, number, at=at)
    mutation = apply(world, {K: 0.6}, disk=disk)
    assert mutation.wrote_to == world.state / "overlay.json"
    assert os.strerror(number) in mutation.why_not_the_file
    assert world.file.read_bytes() == world.first
    assert world.settings().orchestration.cusum_k == 0.6
    assert world.lines()[-1]["wrote_to"] == str(mutation.wrote_to)
    assert world.events() == ["MUTATION_APPLIED"]
    # a second change, of the same key and another one
    apply(world, {K: 0.7, RATE: 0.012}, disk=disk)
    assert (world.settings()[K], world.settings()[RATE]) == (0.7, 0.012)
    # back, one after the other
    world.mutator(disk=disk).rollback()
    assert (world.settings()[K], world.settings()[RATE]) == (0.6, 0.01)
    world.mutator(disk=disk).rollback()
    assert (world.settings()[K], world.settings()[RATE]) == (0.5, 0.01)
    assert world.file.read_bytes() == world.first
    assert world.changes_and_undoes() == []
    assert world.is_whole() is True


def test_a_directory_that_is_really_read_only(world):
    if os.geteuid() != 0 or os.system(f"mount --bind {world.file.parent} {world.file.parent} 2>/dev/null") != 0:
        pytest.skip("needs the right to mount")
    try:
        assert os.system(f"mount -o remount,ro,bind {world.file.parent} 2>/dev/null") == 0
        mutation = apply(world, {K: 0.6})
        assert mutation.wrote_to == world.state / "overlay.json"
        assert "Read-only file system" in mutation.why_not_the_file
    finally:
        os.system(f"umount {world.file.parent}")
    assert world.settings().orchestration.cusum_k == 0.6


def test_a_config_map_is_left_to_kubernetes(world, tmp_path):
    mount = tmp_path / "mount"
    (mount / "..2026").mkdir(parents=True)
    (mount / "..2026" / "config.toml").write_bytes(world.first)
    (mount / "..data").symlink_to("..2026")
    (mount / "config.toml").symlink_to("..data/config.toml")
    world.file = mount / "config.toml"
    mutation = apply(world, {K: 0.6})
    assert mutation.wrote_to == world.state / "overlay.json"
    assert "Kubernetes" in mutation.why_not_the_file


def test_without_a_file_there_is_the_overlay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = ConfigSource(None, {})
    mutation = ConfigMutator(source).apply({K: 0.6}, trigger="test")
    assert mutation.why_not_the_file == "there is no file"
    assert source.load().settings.orchestration.cusum_k == 0.6
    ConfigMutator(source).rollback()
    assert source.load().settings.orchestration.cusum_k == 0.5


def test_an_overlay_that_yielded_does_not_come_back_to_life(world):
    apply(world, {K: 0.6}, disk=ReadOnly(world.file.parent, errno.EROFS, at="open"))
    world.file.write_text(world.file.read_text().replace("= 0.5 ", "= 0.4 "))
    assert world.settings().orchestration.cusum_k == 0.4
    apply(world, {K: 0.5})  # in the file now: exactly the value that the overlay had replaced
    assert world.settings().orchestration.cusum_k == 0.5
    assert "0.6" not in (world.state / "overlay.json").read_text()


def test_a_state_directory_that_cannot_be_written_refuses_everything(world):
    (world.state.parent).mkdir(parents=True, exist_ok=True)
    world.state.write_text("a file where the directory should be")
    with pytest.raises(MutationFailedError, match=r"io\.state_path"):
        apply(world, {K: 0.6})
    assert world.file.read_bytes() == world.first


def test_an_edit_at_the_same_moment_is_not_overwritten(world):
    class Slow(Quick):
        def open_new(disk, path, mode):
            if path.parent == world.file.parent:
                world.file.write_bytes(world.first + b"# a person\n")
            return super().open_new(path, mode)

    with pytest.raises(MutationFailedError, match="edited at the same moment"):
        apply(world, {K: 0.6}, disk=Slow())
    assert world.file.read_bytes() == world.first + b"# a person\n"
    assert world.events() == ["MUTATION_FAILED"]
    assert world.changes_and_undoes() == []
    apply(world, {K: 0.6})
