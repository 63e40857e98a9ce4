"""The log of changes: whatever is done to it afterwards is noticed, and a torn end is put aside and told of."""

import json

import pytest

from mutation_worlds import Quick, World
from usp_daemon.config import AuditDamagedError, AuditEvent, AuditLog, MutationRejectedError

K = "orchestration.cusum_k"


@pytest.fixture
def log(tmp_path):
    log = AuditLog(tmp_path / "io" / "mutations.log", tmp_path / "state", Quick())
    for number in range(5):
        log.append(AuditEvent.PROPOSAL, number, {"delta": {K: [0.5, 0.6]}, "evidence": {"é": 0.1 * number, "n": None}})
    assert log.verify().is_whole
    return log


def test_each_line_names_the_one_before(log):
    lines = [json.loads(line) for line in log.path.read_bytes().splitlines()]
    assert [line["previous"] for line in lines] == ["0" * 64, *(line["hash"] for line in lines[:-1])]
    assert log.verify().num_lines == 5
    assert list(log.read()) == lines


def test_any_flipped_byte_is_found(log):
    content = log.path.read_bytes()
    for position in range(len(content)):
        for bit in (0x01, 0x20, 0x80):
            flipped = bytearray(content)
            flipped[position] ^= bit
            log.path.write_bytes(flipped)
            assert not log.verify().is_whole, (position, bit)


@pytest.mark.parametrize("number", range(5))
def test_a_removed_line_is_found(log, number):
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))
    assert not log.verify().is_whole


@pytest.mark.parametrize("first", range(4))
def test_lines_in_another_order_are_found(log, first):
    lines = log.path.read_bytes().splitlines(keepends=True)
    lines[first], lines[first + 1] = lines[first + 1], lines[first]
    log.path.write_bytes(b"".join(lines))
    assert not log.verify().is_whole


def test_an_added_line_and_another_way_of_writing_one_are_found(log):
    content = log.path.read_bytes()
    lines = content.splitlines(keepends=True)
    for changed in (
        content + lines[-1],
        lines[0] + content,
        content.replace(b'"n":null', b'"n": null', 1),
        content + b"\n",
    ):
        log.path.write_bytes(changed)
        assert not log.verify().is_whole


def test_a_log_that_is_gone_is_found(log):
    log.path.unlink()
    assert log.verify().problems == ((0, "5 lines are missing at the end"),)


def test_a_problem_names_its_line(log):
    log.path.write_bytes(log.path.read_bytes().replace(b"0.6", b"0.7", 3).replace(b"0.7", b"0.6", 2))
    assert log.verify().problems == ((3, "its content does not fit its hash: it was changed"),)


def test_a_torn_last_line_is_put_aside_and_told_of(log):
    content = log.path.read_bytes()
    whole = content[: content[:-1].rindex(b"\n") + 1]
    state = log._head_path.read_bytes()
    for length in range(1, len(content) - len(whole)):
        # as a power cut leaves it: the last line torn, the head still that of four lines
        log._head_path.write_text(json.dumps({"count": 4, "size": len(whole), "hash": json.loads(
            whole.splitlines()[-1])["hash"], "notice": ""}))  # fmt: skip
        torn = content[len(whole) :][:length]
        log.path.write_bytes(whole + torn)
        assert not log.verify().is_whole
        log.append(AuditEvent.PROPOSAL, 9, {})
        assert log.verify().is_whole
        lines = [json.loads(line) for line in log.path.read_bytes().splitlines()]
        assert [line["event"] for line in lines[4:]] == ["LOG_REPAIRED", "PROPOSAL"]
        assert log.path.with_name(lines[4]["file"]).read_bytes() == torn
    assert state


def test_a_line_whose_page_never_reached_the_disk_is_torn_as_well(log):
    content = log.path.read_bytes()
    before = content[: content[:-1].rindex(b"\n") + 1]
    log._head_path.write_text(
        json.dumps({"count": 4, "size": len(before), "hash": json.loads(before.splitlines()[-1])["hash"]})
    )
    log.path.write_bytes(before + b"\0" * 50 + content[len(before) + 50 :])
    log.append(AuditEvent.PROPOSAL, 9, {})
    assert log.verify().is_whole


def test_without_its_head_the_log_is_read_from_the_start(log):
    log._head_path.unlink()
    assert "not known" in log.verify().problems[0][1]
    log.append(AuditEvent.PROPOSAL, 9, {})
    assert (log.verify().is_whole, log.verify().num_lines) == (True, 6)


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "head"])
def test_nothing_is_changed_while_the_log_is_not_to_be_trusted_but_the_way_back_is_open(tmp_path, damage):
    world = World(tmp_path, "[orchestration]\ncusum_k = 0.5\n")
    world.mutator().apply({K: 0.6}, trigger="test")
    with pytest.raises(MutationRejectedError):
        world.mutator().apply({K: 9.0}, trigger="test")
    content = world.log.read_bytes()
    if damage == "changed":
        world.log.write_bytes(content.replace(b"REJECTED", b"ACCEPTED"))
    elif damage == "cut":
        world.log.write_bytes(content[: content.index(b"\n") + 1])
    elif damage == "gone":
        world.log.unlink()
    else:
        (world.state / "audit_head.json").write_bytes(b"\xff")
    assert world.is_whole() is not True
    with pytest.raises(AuditDamagedError, match="audit verify"):
        world.mutator().apply({K: 0.7}, trigger="test")
    world.mutator().rollback()
    assert world.settings()[K] == 0.5
    assert world.is_whole() is True
    assert world.events() == ["LOG_REPAIRED", "MUTATION_ROLLED_BACK"]
    assert len(list(world.log.parent.glob("mutations.log.damaged-*"))) == (damage != "gone")
