"""Which array library an array lives in, and what happens where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import minires as mr
from minires import device


@pytest.fixture
def fresh_probe(monkeypatch):
    """cuda.why_not() probes once; here it may probe again, and forgets the result afterwards."""
    monkeypatch.setattr(device.cuda, "_probed", False)
    monkeypatch.setattr(device.cuda, "_reason", None)
    return monkeypatch


def test_module_of(xp):
    array = xp.zeros(2)
    assert device.module_of(array) is xp
    assert device.module_of(array[0]) is xp
    assert device.device_of(array) == ("cpu" if xp is np else "cuda")


@pytest.mark.parametrize("value", [1.0, [1.0], (1, 2), np.float32(1)])
def test_numbers_and_lists_are_numpys(value):
    assert device.module_of(value) is np


def test_to_device_where_it_is_already():
    array = np.zeros(2)
    assert device.to_device(array, "cpu") is array


@pytest.mark.gpu
def test_to_device_and_back():
    array = np.arange(3.0)
    moved = device.to_device(array, "cuda")
    assert device.device_of(moved) == "cuda"
    assert device.to_device(moved, "cuda") is moved
    assert device.to_device(moved, "cpu").tolist() == [0, 1, 2]


def test_an_unknown_device_is_an_error():
    with pytest.raises(ValueError, match="'tpu' is unknown, expected 'cpu' or 'cuda'"):
        device.to_device(np.zeros(2), "tpu")


def test_the_reason_is_one_line_and_goes_with_is_available():
    reason = mr.cuda.why_not()
    assert mr.cuda.is_available() == (reason is None)
    if reason is not None:
        assert reason
        assert "\n" not in reason
        with pytest.raises(RuntimeError) as caught:
            device.to_device(np.zeros(2), "cuda")
        assert str(caught.value) == f"device 'cuda' is not usable: {reason}"


def test_without_cupy_the_reason_says_how_to_install_it(fresh_probe):
    fresh_probe.setitem(sys.modules, "cupy", None)  # import cupy raises ImportError
    assert not mr.cuda.is_available()
    assert "CuPy does not import" in mr.cuda.why_not()
    assert "pip install 'cupy-cuda12x[ctk]', or, for CUDA 13, pip install 'cupy-cuda13x[ctk]'" in mr.cuda.why_not()


class BrokenCupy:
    """As much of cupy as the probe looks at."""

    float32 = np.float32

    def __init__(self, devices: int, result: float, driver: int = 12040, runtime: int = 12090, capability: str = "90"):
        self.cuda = self.runtime = self
        self.driverGetVersion, self.runtimeGetVersion = lambda: driver, lambda: runtime
        self.Device = lambda: SimpleNamespace(compute_capability=capability)
        self.getDeviceCount = lambda: devices
        self.result = result

    def RawKernel(self, source, name):
        return lambda grid, block, arguments: arguments[0].fill(self.result)

    def zeros(self, size, dtype):
        return np.zeros(size, dtype)


@pytest.mark.parametrize(
    ("devices", "result", "reason"),
    [(0, 7, "there is no NVIDIA GPU"), (1, 3, "gave a wrong result"), (1, 7, None)],
)
def test_the_probe_runs_a_kernel(fresh_probe, devices, result, reason):
    fresh_probe.setitem(sys.modules, "cupy", BrokenCupy(devices, result))
    assert mr.cuda.is_available() == (reason is None)
    assert reason is None or reason in mr.cuda.why_not()


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (0, "CuPy is installed, but no NVIDIA driver is"),
        (11040, "the NVIDIA driver is too old: it can do CUDA 11.4, CuPy was made for 12.9; update the driver"),
    ],
)
def test_the_probe_knows_a_missing_or_old_driver(fresh_probe, driver, reason):
    fresh_probe.setitem(sys.modules, "cupy", BrokenCupy(1, 7, driver))
    assert mr.cuda.why_not().startswith(reason)


@pytest.mark.parametrize(
    "text", ["Failed to load nvrtc: libnvrtc.so.12: cannot open", "catastrophic error: cannot open source file 'x.h'"]
)
def test_the_probe_knows_a_missing_compiler(fresh_probe, text):
    broken = BrokenCupy(1, 7)

    def fail(source, name):
        raise RuntimeError(text)

    broken.RawKernel = fail
    fresh_probe.setitem(sys.modules, "cupy", broken)
    assert "NVRTC or the CUDA headers are missing" in mr.cuda.why_not()
    assert "install them with: pip install 'cupy-cuda12x[ctk]'" in mr.cuda.why_not()
    fresh_probe.setattr(device.cuda, "_probed", False)
    broken.driverGetVersion, broken.runtimeGetVersion = lambda: 13020, lambda: 13000
    assert "install them with: pip install 'cupy-cuda13x[ctk]'" in mr.cuda.why_not()


def test_the_probe_knows_a_gpu_that_is_too_old_for_its_cupy(fresh_probe):
    broken = BrokenCupy(1, 7, driver=13000, runtime=13000, capability="61")

    def fail(source, name):
        raise RuntimeError("nvrtc: error: invalid value for --gpu-architecture (-arch)")

    broken.RawKernel = fail
    fresh_probe.setitem(sys.modules, "cupy", broken)
    assert "this GPU, of compute capability 6.1, is too old for CUDA 13.0" in mr.cuda.why_not()
    assert "pip uninstall cupy-cuda13x, then pip install 'cupy-cuda12x[ctk]'" in mr.cuda.why_not()


@pytest.mark.parametrize(("text", "capability"), [("75", (7, 5)), ("90", (9, 0)), ("120", (12, 0))])
def test_the_compute_capability(fresh_probe, text, capability):
    fresh_probe.setitem(sys.modules, "cupy", BrokenCupy(1, 7, capability=text))
    assert mr.cuda.capability() == capability


def test_without_a_gpu_there_is_no_capability(fresh_probe):
    fresh_probe.setitem(sys.modules, "cupy", None)
    assert mr.cuda.capability() is None


def test_the_probe_reports_errors_of_any_class_in_one_line(fresh_probe):
    class DriverError(Exception):
        pass

    broken = BrokenCupy(1, 7)

    def fail():
        raise DriverError("version\nis insufficient")

    broken.getDeviceCount = fail
    fresh_probe.setitem(sys.modules, "cupy", broken)
    assert mr.cuda.why_not() == "CuPy is installed, but the GPU does not work (DriverError: version is insufficient)"


def test_the_probe_survives_an_error_before_cupy_has_said_its_version(fresh_probe):
    def fail():
        raise RuntimeError("libcudart.so.12: cannot open shared object file")

    broken = BrokenCupy(1, 7)
    broken.driverGetVersion = fail
    fresh_probe.setitem(sys.modules, "cupy", broken)
    assert "libcudart.so.12: cannot open shared object file" in mr.cuda.why_not()


def test_manual_seed_repeats_the_draws():
    mr.manual_seed(3)
    first = mr.default_generator().random(4)
    mr.manual_seed(3)
    assert (mr.default_generator().random(4) == first).all()
    mr.manual_seed(4)
    assert (mr.default_generator().random(4) != first).any()


def test_importing_minires_imports_no_array_library_but_numpy():
    code = "import sys, minires; print(*{'cupy', 'matplotlib', 'hypothesis', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_info_says_what_is_in_use():
    info = mr.info()
    assert info["versions"]["numpy"] == np.__version__
    assert info["cuda"] == (mr.cuda.why_not() or "available")
    assert set(info["kernels"]) == {"cpu", "cuda"}
    assert info["threads"] >= 1
