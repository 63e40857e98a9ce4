"""What the service reports about itself, as plain calls; metrics and tests listen."""

from collections.abc import Sequence

from usp_daemon.wire import TopicPartition

from ._results import Answer


class Observer:
    """Ignores everything; override what is of interest. Calls come from the event loop, one a batch or rarer."""

    def partition_state(self, partition: TopicPartition, state: str | None) -> None:
        """The partition is now in ``state``; None when it is not this replica's any more."""

    def polled(self, partition: TopicPartition, num_records: int) -> None:
        """Records came from the broker."""

    def queued(self, partition: TopicPartition, num_records: int, paused: bool) -> None:
        """So many records wait to be stepped; ``paused`` while no more are fetched."""

    def lag(self, partition: TopicPartition, num_records: int, seconds: float) -> None:
        """So far behind the end of the input is what has been answered; ``seconds`` is the oldest one's age."""

    def stage(self, stage: str, seconds: float, num_records: int) -> None:
        """One batch passed ``stage``: decode, step, encode, publish."""

    def answered(self, partition: TopicPartition, answers: Sequence[Answer], latencies_s: Sequence[float]) -> None:
        """These answers are published and committed; ``latencies_s`` from record time to commit, one a record."""

    def replayed(self, partition: TopicPartition, num_records: int) -> None:
        """Records were stepped again without publishing."""

    def restored(self, partition: TopicPartition, seconds: float, num_symbols: int, num_to_replay: int) -> None:
        """A snapshot was loaded."""

    def commit(self, partition: TopicPartition, outcome: str, seconds: float) -> None:
        """A batch was published: ``outcome`` is committed, unknown, fenced or failed."""

    def writer_reset(self, partition: TopicPartition, reason: str) -> None:
        """The writer was opened anew."""

    def snapshot_saved(self, partition: TopicPartition, seconds: float, size_bytes: int, time_s: float) -> None:
        """A snapshot was written at ``time_s`` (Unix time)."""

    def snapshot_failed(self, partition: TopicPartition, reason: str) -> None:
        """A snapshot could not be written; the one before stands."""

    def rebalanced(self, kind: str, num_partitions: int) -> None:
        """Partitions were "assigned" or "revoked"."""

    def symbol_conflict(self, symbol: str, first: TopicPartition, second: TopicPartition) -> None:
        """One symbol came in two partitions: it has two states."""

    def symbols(self, num_symbols: int) -> None:
        """Symbols that hold state in this replica."""

    def heartbeat(self, loop_lag_s: float) -> None:
        """The event loop turned, ``loop_lag_s`` later than asked."""

    def stalled(self, what: str, seconds: float) -> None:
        """A part has made no progress for so long although it has work."""
