"""Which device, precision and tile are taken, on machines that only these tests know."""

import pytest

from usp_daemon.compute import DeviceUnavailableError, JaxBackend, choose_device


class FakeDevice:
    def __init__(self, kind, number):
        self.id = number
        self.device_kind = f"Fake {kind}"


class FakeMachine:
    def __init__(self, **counts):
        self._devices = {kind: [FakeDevice(kind, i) for i in range(count)] for kind, count in counts.items()}

    def devices(self, kind):
        return self._devices.get(kind, ())

    def instruction_set(self, kind):
        return f"isa-of-{kind}"


CPU_ONLY = FakeMachine(cpu=1)
TWO_GPUS = FakeMachine(cpu=1, gpu=2)


@pytest.mark.parametrize(
    ("machine", "asked", "kind", "number", "precision"),
    [
        (CPU_ONLY, "auto", "cpu", 0, "float64"),
        (CPU_ONLY, "cpu", "cpu", 0, "float64"),
        (TWO_GPUS, "auto", "gpu", 0, "float32"),
        (TWO_GPUS, "cpu", "cpu", 0, "float64"),
        (TWO_GPUS, "cuda:1", "gpu", 1, "float32"),
        (FakeMachine(cpu=1, tpu=1), "auto", "tpu", 0, "float32"),
    ],
)
def test_the_device_that_is_taken(machine, asked, kind, number, precision):
    choice = choose_device(asked, backend=machine)
    assert (choice.kind, choice.device.id, choice.precision) == (kind, number, precision)
    assert choice.instruction_set == f"isa-of-{kind}"
    assert choice.tile_width % 16 == choice.refresh_width % 16 == 0
    assert f"{kind}:{number} (Fake {kind}), {precision}" in choice.describe()


@pytest.mark.parametrize(
    ("machine", "asked", "message"),
    [
        (CPU_ONLY, "cuda:0", "jax sees no CUDA device"),
        (TWO_GPUS, "cuda:2", "jax sees cuda:0, cuda:1"),
        (FakeMachine(), "auto", "no device at all"),
        (FakeMachine(gpu=1), "cpu", "offers no CPU"),
    ],
)
def test_a_device_that_is_not_there_is_refused(machine, asked, message):
    with pytest.raises(DeviceUnavailableError, match=message):
        choose_device(asked, backend=machine)


@pytest.mark.parametrize("asked", ["gpu", "cuda", "cuda:", "cuda:-1", "CPU", ""])
def test_a_device_that_makes_no_sense_is_refused(asked):
    with pytest.raises(ValueError, match="device must be"):
        choose_device(asked, backend=TWO_GPUS)


@pytest.mark.parametrize("width", [0, -16, 13, 20, 50, 63])
def test_widths_that_round_differently_are_refused(width):
    with pytest.raises(ValueError, match="tile_width must be a positive multiple of 16"):
        choose_device("cpu", tile_width=width, backend=CPU_ONLY)
    with pytest.raises(ValueError, match="refresh_width must be a positive multiple of 16"):
        choose_device("cpu", refresh_width=width, backend=CPU_ONLY)


def test_precision_is_what_was_asked_for():
    assert choose_device("cpu", "float32", backend=CPU_ONLY).precision == "float32"
    assert choose_device("cuda:0", "float64", backend=TWO_GPUS).precision == "float64"
    with pytest.raises(ValueError, match="precision must be"):
        choose_device("cpu", "float16", backend=CPU_ONLY)


def test_the_real_machine_has_a_cpu_and_names_its_instruction_set():
    backend = JaxBackend()
    assert backend.devices("cpu")
    assert backend.devices("no such kind") == ()
    assert backend.instruction_set("cpu") == JaxBackend().instruction_set("cpu") != ""
