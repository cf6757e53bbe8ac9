"""A start on storage that is not as it should be: one line that names the bucket, what was done and what to check."""

import re
import time

import pytest

from maeclip_jax import main, remote
from maeclip_jax.prepare.builders import scenes


@pytest.fixture(scope="module")
def data(bucket, tmp_path_factory):
    """gs://name/start-data, with the data set scenes/mu, and one more that no test has read yet."""
    folder = tmp_path_factory.mktemp("data")
    scenes.build("mu", folder)
    bucket.upload(folder, "fresh-data")
    return bucket.upload(folder, "start-data")


@pytest.fixture
def start(fresh_bucket, remote, data, monkeypatch, capsys):
    """Starts a run; returns the one line of its error. It waits as a start may, and not as a run."""
    monkeypatch.setattr("maeclip_jax.remote.START_SECONDS", 3.0)

    def begin(*more: str, workdir: str = remote, data: str = data, config: str = "tests/stored.py") -> str:
        monkeypatch.setenv("MAECLIP_DATA_DIR", data)
        begun = time.monotonic()
        code = main.main([f"--config={config}", f"--workdir={workdir}", "--cache=", *more])
        assert time.monotonic() - begun < 600  # as long as a run waits it would be 900
        said = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("WARNING: waiting for")]
        assert code == 2 and len(said) == 1, said
        return said[0].removeprefix("error: ")

    return begin


DENIED = "access is denied (403); check that this account may {} objects of bucket 'name'"
REFUSED = (
    "the credentials are missing or refused (401); check them with `gcloud auth application-default login`, or the "
    "service account of this machine"
)
AWAY = "the storage does not answer; check the network, and that bucket 'name' can be reached from here"
SHARD = "scenes/mu/2.0.0/scenes-train.array_record-00000-of-00001"


def test_a_bucket_that_is_not_there(start, data):
    said = start(workdir="gs://nobody-has/run")
    assert said == (
        "cannot write gs://nobody-has/run/owner.json: bucket 'nobody-has' is not there (404); check its name"
    )
    assert "gs://nobody-has" in start(data="gs://nobody-has/data")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (dict(operation="get", kind="403"), f"cannot read {{workdir}}/owner.json: {DENIED.format('read')}"),
        (dict(operation="put", kind="403"), f"cannot write {{workdir}}/owner.json: {DENIED.format('write')}"),
        (dict(kind="401"), f"cannot read {{workdir}}/owner.json: {REFUSED}"),
        (dict(operation="put", kind="503"), f"cannot write {{workdir}}/owner.json: {AWAY}"),
        (dict(kind="reset"), f"cannot read {{workdir}}/owner.json: {AWAY}"),
        (dict(kind="slow", seconds=60.0), f"cannot read {{workdir}}/owner.json: {AWAY}"),
        (
            dict(operation="put", kind="429"),
            "cannot write {workdir}/owner.json: the bucket takes no more requests for now (429); check its quota and "
            "how many jobs use it",
        ),
    ],
    ids=lambda x: "-".join(map(str, x.values())) if isinstance(x, dict) else "",
)
def test_a_workdir_that_fails(fault, said, start, fresh_bucket, remote):
    fresh_bucket.fault(match="owner", **fault)
    assert start() == said.format(workdir=remote)


@pytest.mark.parametrize(("kind", "said"), [("403", DENIED.format("read")), ("401", REFUSED), ("503", AWAY)])
def test_a_data_set_that_cannot_be_read(kind, said, start, fresh_bucket):
    fresh_bucket.fault(match="dataset_info", kind=kind)
    assert start(data="gs://name/fresh-data") == (
        f"cannot read gs://name/fresh-data/scenes/mu/2.0.0/dataset_info.json: {said}"
    )


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (dict(match=SHARD, kind="403"), f"cannot .*scenes/mu/2.0.0.*: {re.escape(DENIED.format('read'))}"),
        (dict(match=SHARD, kind="401"), rf"cannot .*scenes/mu/2.0.0.*: {re.escape(REFUSED)}"),
        (dict(match=SHARD, kind="404"), rf"gs://name/start-data/{SHARD} is missing.*"),
        (dict(match=SHARD, kind="slow", seconds=60.0), r"cannot read gs://name/.*/2.0.0: no answer for 3 s; check .*"),
        (dict(match=SHARD, kind="reset"), r"cannot read gs://name/.*/2.0.0: no answer for 3 s; check the network, .*"),
    ],
    ids=lambda x: "-".join(map(str, x.values())) if isinstance(x, dict) else "",
)  # fmt: skip
def test_data_that_fail(fault, said, start, fresh_bucket):
    fresh_bucket.fault(**fault)
    found = start()
    assert re.fullmatch(said, found), found


def test_no_network_at_all(start, fresh_bucket, remote):
    fresh_bucket.away(60)
    assert start() == f"cannot read {remote}/owner.json: {AWAY}"


def test_a_data_set_that_is_not_there(start):
    said = start(data="gs://name/elsewhere")
    assert said.startswith("no data set 'scenes/mu' at gs://name/elsewhere/scenes/mu (gs://name/elsewhere holds no")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(workdir="foo://b/run"), "--workdir: unknown scheme foo:// in 'foo://b/run'; {valid}"),
        (
            dict(workdir="s3://b/run"),
            "--workdir: checkpoints lie in gs:// or a folder, not in 's3://b/run'; valid: gs://bucket/folder",
        ),
        (
            dict(data="s3://b/data"),
            "the folder of data sets: records lie in gs:// or a folder, not in 's3://b/data'; valid: gs://bucket/folder",
        ),
        (
            dict(more=["--config.resume=az://b/run"]),
            "--config.resume: checkpoints lie in gs:// or a folder, not in 'az://b/run'; valid: gs://bucket/folder",
        ),
        (dict(workdir="gs://"), "--workdir: 'gs://' names no bucket; valid: gs://bucket/folder"),
        (dict(config="foo://b/config.json"), "--config: unknown scheme foo:// in 'foo://b/config.json'; {valid}"),
        (dict(more=["--config.resume=foo://b/a"]), "--config.resume: unknown scheme foo:// in 'foo://b/a'; {valid}"),
        (dict(more=["--config.init_from=x://a"]), "--config.init_from: unknown scheme x:// in 'x://a'; {valid}"),
        (dict(more=["--cache=foo://b/xla"]), "--cache: unknown scheme foo:// in 'foo://b/xla'; {valid}"),
        (dict(data="foo://b/data"), "the folder of data sets: unknown scheme foo:// in 'foo://b/data'; {valid}"),
        (
            dict(config="gs://name/no/config.json"),
            "cannot read --config=gs://name/no/config.json: [Errno 2] No such file or directory: "
            "'gs://name/no/config.json'; valid: a run's config.json",
        ),
        (
            dict(config="gs://name/no/clip.py:scale=demo"),
            "experiment file 'gs://name/no/clip.py': Python files are read from local folders; valid: a copy of it "
            "here",
        ),
        (
            dict(more=["--config.resume=gs://name/no/run"]),
            "no checkpoint in 'gs://name/no/run'; valid: a workdir with checkpoints/<step>, or one such step",
        ),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_names_that_mean_nothing(settings, said, start):
    valid = "valid: gs://, s3://, az://, hf:// or a folder"
    more = settings.pop("more", ())
    assert start(*more, **settings) == said.format(valid=valid)


def test_a_scheme_whose_package_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(remote.UserError, match=r"^--workdir: 's3://b/run' needs the package s3fs: pip install"):
        remote.check_scheme("s3://b/run", "--workdir")
