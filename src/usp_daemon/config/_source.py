"""The configuration as it is at the moment: file, then overlay, then environment."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from ._key import Value
from ._load import (
    BUILT_IN,
    ConfigError,
    Problem,
    broken_rules,
    find_config,
    parse_content,
    read_content,
    values_of_document,
    values_of_environment,
)
from ._overlay import OverlayEntry, YieldedEntry, decode_overlay, overlay_path, read_overlay, settle_overlay
from ._settings import SPECS, Settings, build_settings


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedConfig:
    """Settings that were accepted as a whole, and where they come from. Hashes are SHA-256 in hexadecimal.

    ``content_hash`` is over all effective settings but the secrets, ``base_hash`` the predictor's hash of file and
    environment without the overlay, ``file_hash`` over the bytes of the file ("" without one). ``content`` and
    ``of_file`` are those bytes and the values that they set; what they leave out stands at its default.
    """

    source: str
    settings: Settings
    content_hash: str
    base_hash: str
    file_hash: str
    overlay_applied: tuple[OverlayEntry, ...] = ()
    overlay_yielded: tuple[YieldedEntry, ...] = ()
    content: bytes = dataclasses.field(default=b"", repr=False)
    overlay_content: bytes | None = dataclasses.field(default=None, repr=False)
    of_file: Mapping[str, Value] = dataclasses.field(default_factory=dict, repr=False)
    of_environment: Mapping[str, Value] = dataclasses.field(default_factory=dict, repr=False)

    def value_of_file(self, path: str) -> Value:
        """What the file says under ``path``, or the default where it says nothing."""
        return self.of_file.get(path, SPECS[path].default)


class ConfigSource:
    """Reads the configuration anew at every :meth:`load`. It writes nothing and keeps nothing."""

    def __init__(self, path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> None:
        """``path`` as for ``find_config``; ``environ`` is copied, by default from the process's environment."""
        self._environ = dict(os.environ if environ is None else environ)
        self.path = find_config(path, self._environ)
        # where the overlay lay when the configuration was last right
        self._overlay_path = overlay_path(str(SPECS["io.state_path"].default))

    @property
    def overlay_path(self) -> Path:
        """Where the overlay lies, by the configuration that was right last."""
        return self._overlay_path

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment whose overrides are applied."""
        return self._environ

    @property
    def name(self) -> str:
        """The file, as messages name it."""
        return BUILT_IN if self.path is None else str(self.path)

    @property
    def watched_paths(self) -> tuple[Path, ...]:
        """The files on whose content the next :meth:`load` depends: the file, if there is one, and the overlay."""
        return (self._overlay_path,) if self.path is None else (self.path, self._overlay_path)

    def load(self) -> LoadedConfig:
        """The configuration as it is now. Raises ``ConfigError`` with every problem at once."""
        return self._judge(b"" if self.path is None else read_content(self.path), read_overlay)

    def judge(self, content: bytes, overlay: bytes | None) -> LoadedConfig:
        """The configuration as it would be with these bytes in the file and the overlay. Raises ``ConfigError``."""
        return self._judge(content, lambda path: overlay)

    def _judge(self, content: bytes, overlay_fn: Callable[[Path], bytes | None]) -> LoadedConfig:
        document = {} if self.path is None else parse_content(content, self.path)
        of_file, problems = values_of_document(document)
        of_environment, environment_problems = values_of_environment(self._environ)
        problems.extend(environment_problems)
        base = {**of_file, **of_environment}
        refused = {problem.path for problem in problems}
        problems.extend(broken_rules(base, refused=refused))
        if "io.state_path" not in refused:
            self._overlay_path = overlay_path(str(base.get("io.state_path", SPECS["io.state_path"].default)))
        overlay: bytes | None = None
        try:
            overlay = overlay_fn(self._overlay_path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            problems.append(Problem(str(self._overlay_path), "a readable overlay", reason.lower()))
        entries, overlay_problems = decode_overlay(overlay, self._overlay_path)
        problems.extend(overlay_problems)
        if problems:
            raise ConfigError(self.name, problems)
        applied, yielded = settle_overlay(entries, of_file, of_environment)
        settings = build_settings({**of_file, **{entry.path: entry.value for entry in applied}, **of_environment})
        return LoadedConfig(
            source=self.name,
            settings=settings,
            content_hash=settings.content_hash(),
            base_hash=build_settings(base).predictor_hash(),
            file_hash="" if self.path is None else hashlib.sha256(content).hexdigest(),
            overlay_applied=applied,
            overlay_yielded=yielded,
            content=content,
            overlay_content=overlay,
            of_file=of_file,
            of_environment=of_environment,
        )
