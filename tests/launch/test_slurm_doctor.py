"""Jobs under a real SLURM whose machines doctor looks at first: what it finds is left out, or ends them."""

import re
from pathlib import Path

import pytest

from hcmegatron.cli import main
from tests.launch.slurm import missing
from tests.launch.slurm_jobs import ended, events, started, stub, until, words

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]


def left_out_by_slurm(site, job):
    return re.search(r"ExcNodeList=(\S*)", site.run("scontrol", "show", "job", job))[1]


def doctored(run, text, **settings):
    """A stub with a stand-in for doctor, which is a few lines of shell; $4 is its file."""
    program = f'if [ "$1" != doctor ]; then echo "$MASTER_ADDR"; exit; fi; {text}'
    return stub(run, "", command=("bash", "-c", program, "x", "train", "y"), nodes=2, doctor=True, **settings)


def test_what_doctor_finds_bad_is_left_out_of_the_job(site):
    """It looks at spare machines, too. Rank 0 ends with 6, for which srun ends the others."""
    bad = "[ $SLURM_PROCID != 0 ] || { printf %s $SLURM_STEP_NUM_NODES,n1 >$4; exit 6; }; exec sleep 60"
    doctored("run", bad, spare_nodes=1)
    assert ended("run") == "0 finished"
    assert started("run") == ["n2,n3"] and words("run")["left out"] == "3, n1 (launch/exclude)"
    assert Path("run/launch/logs/rank-1.log").read_text() == "127.0.0.1\n"


def test_what_doctor_finds_and_leaving_out_does_not_mend_ends_the_job(site):
    """None of them goes on without doctor's word, or comes back for ever."""
    begin = "[ $SLURM_PROCID = 0 ] || exit 0; "
    told = {
        "faults": ("touch $4; exit 5", "5 doctor found faults that leaving machines out does not mend"),
        "mistake": ("exit 2", "2 doctor found a mistake of the user's"),
        "killed": ("kill -9 $$", "137 doctor did not come to its end, and 1 restarts were used"),
        "few": (
            "printf $SLURMD_NODENAME >$4; exit 6",
            "6 doctor leaves fewer than 2 machines, and 0 restarts",
        ),
    }
    for run, (text, _) in told.items():
        doctored(run, begin + text, restarts=int(run == "killed"))
    for run, (_, words_of_end) in told.items():
        assert ended(run).startswith(words_of_end)
        assert events(run) == ["died"] * (run == "killed") + ["ended"]
    # What an earlier job's doctor has left is not this one's.
    Path("faults/launch/doctor.exclude").write_text("n1")
    doctored("faults", begin + "exit 2")
    assert ended("faults").startswith("2 ") and "left out" not in words("faults")


def test_a_job_is_cancelled_while_doctor_looks_at_it(site, capsys):
    doctored("run", "touch looks; exec sleep 60")
    until(lambda: Path("looks").exists())
    assert main(["cancel", "run"]) == 0
    assert ended("run") == "0 cancelled" and events("run") == ["ended"]


def test_a_chain_leaves_out_what_its_jobs_have_found_bad(site):
    """And the machines of the site's own list. The last job says that none comes after it, and is no end for ever."""
    text = "[ $SLURM_PROCID = 0 ] || exit 0; printf $SLURMD_NODENAME >$4; exit 6"
    job = doctored("run", text, exclude=("n4",), chain=2)
    assert ended("run").startswith(
        "75 fewer than 2 machines are left of n[2-3], in the last job of the chain: "
    )
    assert events("run") == ["died", "chain", "died", "ended"]
    assert words("run")["left out"] == "n1, n2 (launch/exclude)"
    assert left_out_by_slurm(site, str(int(job) + 1)) == "n4,n1"
    Path("run/launch/exclude").unlink()
    script = Path("run/launch/job.sh")
    script.write_text(
        script.read_text().replace("then echo", "then exit 3; echo").replace("; exit 6", "; : >$4")
    )
    site.run("sbatch", f"--chdir={Path.cwd()}/run", str(script))
    until(lambda: Path("run/launch/ended").exists() and ended("run").startswith("3 "))
