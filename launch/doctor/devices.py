"""Health of the GPUs, as nvidia-smi tells it: memory errors, throttling, temperature, the PCIe link."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping

from launch.doctor.findings import Finding, fault, note, ok, warning
from launch.doctor.subject import Subject

NAME = "GPU health"
FIELDS = (
    "index",
    "name",
    "driver_version",
    "temperature.gpu",
    "clocks.sm",
    "clocks.max.sm",
    "clocks_throttle_reasons.active",
    "ecc.errors.uncorrected.volatile.total",
    "ecc.errors.corrected.volatile.total",
    "remapped_rows.pending",
    "remapped_rows.failure",
    "pcie.link.width.current",
    "pcie.link.width.max",
)
COMMAND = ("nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits")
HOT = 85  # degrees Celsius: data centre GPUs slow down a few degrees above
CORRECTED = 1000  # memory errors since the driver was loaded; a few are no sign of anything
# nvml.h: nvmlClocksThrottleReason*. Idle, application clocks, power cap and sync boost belong to normal operation.
THROTTLED = {0x08: "hardware slowdown", 0x20: "driver's thermal limit"}
BROKEN = {0x40: "thermal slowdown by hardware", 0x80: "power brake: the supply gives too little"}


def check(subject: Subject) -> Iterator[Finding]:
    """Of every GPU of this machine."""
    if not subject.gpu:
        yield note(NAME, "not looked at: no GPU")
        return
    try:
        text = subject.system.run(COMMAND)
    except OSError as error:
        yield note(NAME, f"not looked at: {error}")
        return
    gpus = parse(text)
    found = [finding for gpu in gpus for finding in judge(gpu)]
    if gpus and not found:
        hottest = max((gpu["temperature.gpu"] for gpu in gpus), key=lambda text: text.zfill(9))
        what = f"{len(gpus)} x {gpus[0]['name']}, driver {gpus[0]['driver_version']}"
        found = [ok(NAME, f"{what}, nothing amiss, at most {hottest} degrees")]
    yield from found
    ranks = subject.ranks.local_world_size
    seen = len(gpus) if subject.gpus == 1 else subject.gpus  # one alone is this rank's own
    if seen < ranks:
        yield fault("GPUs", f"{seen} for {ranks} ranks", "start as many ranks as GPUs", machine=True)


def parse(text: str) -> list[dict[str, str]]:
    """What COMMAND prints, by field."""
    rows = csv.reader(text.strip().splitlines(), skipinitialspace=True)
    return [dict(zip(FIELDS, row, strict=True)) for row in rows]


def judge(gpu: Mapping[str, str]) -> Iterator[Finding]:
    """Everything that is amiss with one GPU. What it does not tell ("[N/A]") is not judged."""
    where = f"GPU {gpu['index']}"

    def number(field: str, base: int = 10) -> int:
        try:
            return int(gpu[field], base)
        except ValueError:
            return 0

    if errors := number("ecc.errors.uncorrected.volatile.total"):
        yield fault(
            f"{where} memory", f"{errors} uncorrected errors", "reset the GPU, or replace it", machine=True
        )
    if gpu["remapped_rows.failure"] == "Yes":
        yield fault(f"{where} memory", "no rows left to remap", "replace the GPU", machine=True)
    if gpu["remapped_rows.pending"] == "Yes":
        yield warning(f"{where} memory", "rows wait to be remapped", "reset the GPU: nvidia-smi --gpu-reset")
    if (errors := number("ecc.errors.corrected.volatile.total")) > CORRECTED:
        yield warning(f"{where} memory", f"{errors} corrected errors", "watch it; reset the GPU")
    reasons = number("clocks_throttle_reasons.active", 16)
    clocks = f"at {gpu['clocks.sm']} of {gpu['clocks.max.sm']} MHz"
    for bit, words in BROKEN.items():
        if reasons & bit:
            yield fault(
                f"{where} clock", f"{words}, {clocks}", "look at cooling and power supply", machine=True
            )
    for bit, words in THROTTLED.items():
        if reasons & bit:
            yield warning(f"{where} clock", f"{words}, {clocks}", "look at cooling and power supply")
    if (degrees := number("temperature.gpu")) >= HOT:
        yield warning(f"{where} temperature", f"{degrees} degrees", "look at cooling")
    lanes, most = number("pcie.link.width.current"), number("pcie.link.width.max")
    if 0 < lanes < most:
        yield warning(f"{where} PCIe", f"{lanes} of {most} lanes", "reseat the GPU")
