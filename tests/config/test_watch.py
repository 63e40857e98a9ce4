"""Changes of content are told, whatever way the file was changed, and nothing else is."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import threading
import time

import pytest

from usp_daemon.config import ConfigSource, ConfigWatcher
from usp_daemon.config._watch import notify_about

LONG = 20.0  # how long a test waits for what must come; it takes milliseconds
QUICK = {"settle_s": 0.02, "patience_s": 0.2}


def text_of(value):
    return f"# the allowance\n[orchestration]\ncusum_k = {value}  # sd\n"


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "etc" / "usp"
    directory.mkdir(parents=True)
    (directory / "config.toml").write_text(text_of(0.5))
    return directory / "config.toml"


def watching(file, *, poll_interval_s=60.0, **options):
    return ConfigWatcher(ConfigSource(file, {}), poll_interval_s=poll_interval_s, **{**QUICK, **options})


class Armed:
    """The system's notifications, and whether they are being waited for: then it is no first look that tells."""

    def __init__(self):
        self.waiting = threading.Event()

    def __call__(self, directories):
        self.notifier = notify_about(directories)
        return self

    def watch(self, *arguments):
        self.waiting.set()
        return self.notifier.watch(*arguments)

    def close(self):
        self.notifier.close()


async def next_event(watcher):
    return await asyncio.wait_for(anext(watcher), LONG)


async def next_value(watcher):
    event = await next_event(watcher)
    assert event.error is None, event.error
    return event.loaded.settings.orchestration.cusum_k


def by_rename(file, text):
    other = file.with_name(".config.toml.swp")
    other.write_text(text)
    os.replace(other, file)


def in_place(file, text):
    file.write_text(text)


def deleted_and_made_anew(file, text):
    file.unlink()
    file.write_text(text)


def directory_in_place_of_another(file, text):
    new = file.parent.with_name("usp.new")
    shutil.copytree(file.parent, new)
    (new / file.name).write_text(text)
    file.parent.rename(file.parent.with_name(f"usp.old.{time.monotonic_ns()}"))
    new.rename(file.parent)


def moved_away_and_back(file, text):
    file.rename(file.with_name("away"))
    by_rename(file, text)


@pytest.mark.parametrize(
    "change", [by_rename, in_place, deleted_and_made_anew, directory_in_place_of_another, moved_away_and_back]
)
async def test_a_change_is_told_however_it_was_made(file, change):
    armed = Armed()
    async with watching(file, notify_fn=armed) as watcher:
        await asyncio.to_thread(armed.waiting.wait, LONG)
        for value in (0.6, 0.7, 0.5):
            change(file, text_of(value))
            assert await next_value(watcher) == value


async def test_links_turned_over_as_kubernetes_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mount = tmp_path / "mount"
    mount.mkdir()

    def publish(generation, value):
        (mount / f"..{generation}").mkdir()
        (mount / f"..{generation}" / "config.toml").write_text(text_of(value))
        (mount / "..data_tmp").symlink_to(f"..{generation}")
        os.replace(mount / "..data_tmp", mount / "..data")

    publish("one", 0.5)
    (mount / "config.toml").symlink_to("..data/config.toml")
    armed = Armed()
    async with watching(mount / "config.toml", notify_fn=armed) as watcher:
        await asyncio.to_thread(armed.waiting.wait, LONG)
        for generation, value in (("two", 0.6), ("three", 0.7)):
            publish(generation, value)
            assert await next_value(watcher) == value


async def test_the_target_of_a_link_elsewhere(file, tmp_path):
    target = tmp_path / "data" / "live" / "real.toml"
    target.parent.mkdir(parents=True)
    target.write_text(text_of(0.5))
    file.unlink()
    file.symlink_to(target)
    armed = Armed()
    async with watching(file, notify_fn=armed) as watcher:
        await asyncio.to_thread(armed.waiting.wait, LONG)
        by_rename(target, text_of(0.6))
        assert await next_value(watcher) == 0.6


async def test_a_touch_is_no_change_and_an_older_file_is_one(file):
    old = file.with_name("old.toml")
    old.write_text(text_of(0.3))
    os.utime(old, (1, 1))
    async with watching(file, poll_interval_s=0.1) as watcher:
        os.utime(file)
        by_rename(file, text_of(0.5))  # the same content in a new file
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(watcher), 0.6)
        os.replace(old, file)
        assert file.stat().st_mtime == 1
        assert await next_value(watcher) == 0.3


async def test_without_notifications_it_polls(file):
    def none_to_be_had(directories):
        raise OSError("OS file watch limit reached")

    async with watching(file, poll_interval_s=0.05, notify_fn=none_to_be_had) as watcher:
        for value in (0.6, 0.7):
            by_rename(file, text_of(value))
            assert await next_value(watcher) == value


async def test_notifications_that_never_come_are_made_up_for_by_the_poll(file):
    class Silent:
        def watch(self, debounce_ms, step_ms, timeout_ms, stop_event):
            return "stop" if stop_event.wait(timeout_ms / 1e3) else "timeout"

        def close(self):
            pass

    async with watching(file, poll_interval_s=0.05, notify_fn=lambda directories: Silent()) as watcher:
        in_place(file, text_of(0.6))
        assert await next_value(watcher) == 0.6


async def test_notifications_that_break_later_are_made_up_for_by_the_poll(file):
    class Broken:
        def watch(self, debounce_ms, step_ms, timeout_ms, stop_event):
            raise RuntimeError("queue overflow")

        def close(self):
            pass

    async with watching(file, poll_interval_s=0.05, notify_fn=lambda directories: Broken()) as watcher:
        in_place(file, text_of(0.6))
        assert await next_value(watcher) == 0.6


async def test_a_bad_file_is_told_as_an_error_and_a_good_one_after_it(file):
    async with watching(file) as watcher:
        for bad in ("[orchestration]\ncusum_k = 99\n", "[orchestration\n", "\0", "[nothing]\n"):
            by_rename(file, bad)
            event = await next_event(watcher)
            assert (event.loaded, bool(event.error.problems)) == (None, True)
        file.unlink()
        assert "no such file" in str((await next_event(watcher)).error)
        by_rename(file, text_of(0.7))
        assert await next_value(watcher) == 0.7
        shutil.rmtree(file.parent)
        assert (await next_event(watcher)).error is not None
        file.parent.mkdir()
        file.write_text(text_of(0.6))
        assert await next_value(watcher) == 0.6


async def test_half_a_file_is_looked_at_again_before_it_is_told(file):
    whole = text_of(0.7) + "[kernels]\nsde_dt = 0.02\n"
    async with watching(file, patience_s=2.0) as watcher:
        with file.open("w") as half:
            # a right configuration by itself, with everything else at its default
            half.write(text_of(0.5)[:30])
            half.flush()
            await asyncio.sleep(0.5)
            half.write("\n\n[orchest")
            half.flush()
            await asyncio.sleep(0.5)
            half.seek(0)
            half.write(whole)
        event = await next_event(watcher)
        assert event.error is None
        assert (event.loaded.settings.orchestration.cusum_k, event.loaded.settings.kernels.sde_dt) == (0.7, 0.02)


async def test_a_file_that_stays_short_is_told_in_the_end(file):
    async with watching(file) as watcher:
        in_place(file, "")
        event = await next_event(watcher)
        assert event.loaded.settings.orchestration.cusum_k == 0.5  # the default


async def test_the_overlay_is_watched_as_well(file, tmp_path):
    async with watching(file, poll_interval_s=0.1) as watcher:
        state = tmp_path / "io" / "state"
        state.mkdir(parents=True)
        entry = {"value": 0.6, "base": 0.5, "mutation": "m"}
        (state / "overlay.json").write_text(json.dumps({"version": 1, "entries": {"orchestration.cusum_k": entry}}))
        assert await next_value(watcher) == 0.6
        (state / "overlay.json").unlink()
        assert await next_value(watcher) == 0.5


async def test_a_change_since_it_was_loaded_is_told(file):
    source = ConfigSource(file, {})
    known = source.load()
    by_rename(file, text_of(0.6))
    async with ConfigWatcher(source, poll_interval_s=60.0, known=known, **QUICK) as watcher:
        assert await next_value(watcher) == 0.6


def watch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "config-watch"]


@pytest.mark.parametrize("moment_s", [0.0, 0.01, 0.3])
async def test_cancelling_leaves_no_thread(file, moment_s):
    async def consume():
        async with watching(file) as watcher:
            async for _ in watcher:
                pass

    before = threading.active_count()
    task = asyncio.create_task(consume())
    await asyncio.sleep(moment_s)
    in_place(file, "[half")  # it is in the middle of doubting
    await asyncio.sleep(moment_s)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5.0)
    assert watch_threads() == []
    assert threading.active_count() == before


async def test_a_second_cancellation_leaves_no_thread_either(file):
    async def consume():
        async with watching(file) as watcher:
            await anext(watcher)

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert watch_threads() == []


async def test_a_defect_in_the_thread_is_told(file):
    def defect(directories):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with watching(file, notify_fn=defect) as watcher:
            await next_event(watcher)


async def test_a_thousand_random_edits_never_crash_it_and_are_never_seen_half(file):
    """Valid, invalid, truncated, binary, removed, linked: every accepted content is one that was written whole."""
    chance = random.Random(20261125)
    other = file.with_name("other.toml")
    whole = {file.read_bytes()}

    def edit():
        value = round(chance.uniform(0.05, 2.0), 6)
        content = text_of(value) + "".join(f"# {i}\n" for i in range(chance.randrange(50)))
        kind = chance.randrange(8)
        if kind == 0:
            content = text_of(chance.choice([9, '"x"', "nan", "[1]", "-1"]))
        elif kind == 1:
            by_rename(file, content[: chance.randrange(len(content))] + "\x00")
            return
        elif kind == 2:
            with contextlib.suppress(IsADirectoryError):
                file.write_bytes(chance.randbytes(chance.randrange(200)) + b"\xff")
            return
        elif kind == 3:
            file.unlink(missing_ok=True)
            return
        elif kind == 4:
            other.write_text(content)
            whole.add(content.encode())
            file.unlink(missing_ok=True)
            file.symlink_to(other.name)
            return
        if kind != 0:
            whole.add(content.encode())
        if file.is_symlink():
            file.unlink()
        (in_place if kind in (5, 6) else by_rename)(file, content)

    seen = threading.Event()

    def edit_all():
        for number in range(1, 1001):
            edit()
            time.sleep(chance.choice([0.0, 0.0, 0.001, 0.01]))
            if number % 50 == 0:  # now and then it stands still until something was told
                content = text_of(1.3 + number / 1e5)
                whole.add(content.encode())
                seen.clear()
                by_rename(file, content)
                seen.wait(LONG)
        by_rename(file, text_of(1.25))

    whole.add(text_of(1.25).encode())
    async with watching(file, poll_interval_s=0.2) as watcher:
        editing = threading.Thread(target=edit_all)
        editing.start()
        num_events = 0
        while True:
            event = await next_event(watcher)
            num_events += 1
            seen.set()
            if event.loaded is not None:
                assert event.loaded.content in whole
                if event.loaded.settings.orchestration.cusum_k == 1.25 and not editing.is_alive():
                    break
        editing.join()
    assert num_events >= 20


async def test_what_was_forgotten_is_told_again_and_only_once(file):
    async with watching(file, poll_interval_s=0.05) as watcher:
        watcher.forget()
        assert await next_value(watcher) == 0.5
        by_rename(file, text_of(0.6))
        # the next event is that of the change: the former content was told once
        assert await next_value(watcher) == 0.6
