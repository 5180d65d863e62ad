"""Checkpoints keep everything, and refuse what does not fit."""

import dataclasses
import gc
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from runtime import toy

from instruct_jax.runtime import hosts
from instruct_jax.runtime.checkpoints import (
    CheckpointError,
    Checkpoints,
    kept_steps,
    restore_params,
    saved_fingerprints,
)
from instruct_jax.runtime.digests import digests
from instruct_jax.runtime.hosts import HostLostError

# where a save or a restore fails, orbax leaves futures behind that complain when they are
# collected, in whatever test runs then
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True, scope="module")
def collect_orbax_leftovers():
    yield
    gc.collect()


def test_fingerprints_can_be_read_without_a_device(tmp_path):
    assert saved_fingerprints(tmp_path) == saved_fingerprints(tmp_path / "nowhere") == {}
    for step, name in ((9, "old"), (10, "new")):
        with opened(tmp_path, fingerprints={"tokenizer": name}) as checkpoints:
            checkpoints.save(at(step))
    assert saved_fingerprints(tmp_path) == {"tokenizer": "new"}
    (tmp_path / "10" / "_CHECKPOINT_METADATA").write_text("{")
    with pytest.raises(CheckpointError, match="the checkpoint .*/10 is damaged: "):
        saved_fingerprints(tmp_path)


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def opened(folder, fingerprints=toy.FINGERPRINTS, **options):
    return Checkpoints(folder, fingerprints=fingerprints, **options)


def at(step, **options):
    return dataclasses.replace(toy.create(**options), step=jnp.asarray(step, jnp.int32))


@pytest.fixture
def saved(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(at(3))
    return tmp_path


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_keys_survive(tmp_path, impl):
    state = dataclasses.replace(toy.create(), key=jax.random.key(5, impl=impl))
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state)
        key = checkpoints.restore(abstract(state)).key
    assert key.dtype == state.key.dtype
    np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(state.key))


def test_sharded_states_come_back_sharded_and_donation_does_not_reach_a_save(tmp_path):
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    layout = NamedSharding(mesh, PartitionSpec("data"))
    state = jax.device_put(toy.create(), NamedSharding(mesh, PartitionSpec()))
    state = dataclasses.replace(
        state,
        params={"w": jax.device_put(jnp.zeros((devices * 4096,)), layout)},
        opt_state=(),
        ema=None,
    )
    grow = jax.jit(
        lambda s: dataclasses.replace(s, step=s.step + 1, params={"w": s.params["w"] + 1}),
        donate_argnums=0,
    )
    with opened(tmp_path, keep=9) as checkpoints:
        for _ in range(4):
            state = grow(state)
            # the next grow reuses the memory while this is still being written
            checkpoints.save(state)
        checkpoints.wait()
        for step in range(1, 5):
            found = checkpoints.restore(abstract(state), step)
            assert found.params["w"].sharding == state.params["w"].sharding
            np.testing.assert_array_equal(found.params["w"], step)


def test_epochs_survive_the_saves_between_them(tmp_path):
    """A checkpoint of every epoch stays, whatever else was saved in between by the clock or a
    signal.
    """
    with opened(tmp_path, keep=1, keep_every=10) as checkpoints:
        for step in (10, 13, 17, 20, 25):
            checkpoints.save(at(step))
        checkpoints.wait()
        assert set(checkpoints._manager.all_steps()) == {10, 20, 25}


def test_params_alone(saved):
    params = restore_params(saved, abstract(toy.create().params))
    assert params.keys() == {"w", "b"}
    np.testing.assert_array_equal(params["w"], 2.0)
    np.testing.assert_array_equal(
        restore_params(saved, abstract(toy.create().params["w"]), part="ema/w"), 2.0
    )


def test_another_shape_is_refused_by_name(saved):
    message = r"3: .*ema\.w is float32\[4\] in the checkpoint but float32\[5\] here.*new run folder"
    with opened(saved) as checkpoints, pytest.raises(CheckpointError, match=message):
        checkpoints.restore(abstract(at(0, width=5)))
    with pytest.raises(
        CheckpointError, match=r"params\.w is float32\[4\] in the checkpoint but float32\[5\] here"
    ):
        restore_params(saved, abstract(toy.create(width=5).params))


def test_missing_and_left_over_leaves_are_refused(saved):
    state = toy.create()
    with opened(saved) as checkpoints:
        with pytest.raises(
            CheckpointError, match=r"ema\.b is float32\[\] in the checkpoint but nothing here"
        ):
            checkpoints.restore(abstract(dataclasses.replace(state, ema=None)))
        with pytest.raises(
            CheckpointError, match=r"params\.new is nothing in the checkpoint but float32\[2\] here"
        ):
            checkpoints.restore(
                abstract(dataclasses.replace(state, params=state.params | {"new": jnp.zeros(2)}))
            )
        with pytest.raises(
            CheckpointError, match=r"kl_coef is float32\[\] in the checkpoint but bfloat16\[\] here"
        ):
            checkpoints.restore(
                abstract(dataclasses.replace(state, kl_coef=jnp.zeros((), jnp.bfloat16)))
            )


def test_another_tokenizer_is_refused(saved):
    other = {"model": "toy", "tokenizer": "t2"}
    message = (
        "another tokenizer: t1 there, t2 now.  Use the same tokenizer, or start a new run folder"
    )
    with (
        opened(saved, fingerprints=other) as checkpoints,
        pytest.raises(CheckpointError, match=message),
    ):
        checkpoints.restore(abstract(toy.create()))
    with pytest.raises(CheckpointError, match=message):
        restore_params(saved, abstract(toy.create().params), fingerprints=other)


def test_absent_and_damaged_checkpoints_say_so(saved):
    with pytest.raises(CheckpointError, match="no checkpoint of step 4; there are \\[3\\]"):
        restore_params(saved, abstract(toy.create().params), step=4)
    with pytest.raises(CheckpointError, match="run the stage that makes it first"):
        restore_params(saved / "nowhere", {})
    for file in (saved / "3" / "state").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"")
    with (
        opened(saved) as checkpoints,
        pytest.raises(CheckpointError, match="the checkpoint .*3 is damaged"),
    ):
        checkpoints.restore(abstract(toy.create()))


def flip(file, at=0.5):
    """One bit of a file, at half of its length."""
    data = bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 1
    file.write_bytes(data)


def damage(checkpoint):
    """Flips a bit in the largest file, which holds the arrays."""
    flip(
        max(
            (path for path in checkpoint.rglob("*") if path.is_file()),
            key=lambda path: path.stat().st_size,
        )
    )


def large(step):
    """Arrays that orbax keeps in a file of their own, where it checks nothing."""
    return dataclasses.replace(
        at(step), ema={"w": jax.random.normal(jax.random.key(step), (64, 300))}
    )


def test_no_flipped_bit_is_read_as_a_number(tmp_path):
    state = large(3)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state)
    said = []
    for file in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        flip(file)
        try:
            with opened(tmp_path) as checkpoints:
                found = checkpoints.restore(abstract(state))
        except CheckpointError as error:
            said.append(str(error))
        else:
            jax.tree.map(
                np.testing.assert_array_equal,
                dataclasses.replace(found, key=None),
                dataclasses.replace(state, key=None),
            )
        file.write_bytes(whole)
    assert any("ema.w is not what was saved" in message for message in said), said
    assert len(said) >= 4 and all(f"{tmp_path}/3" in message for message in said)


def test_a_damaged_result_of_a_stage_stops_with_the_fix(tmp_path):
    with opened(tmp_path / "sft" / "checkpoints") as checkpoints:
        checkpoints.save(large(3))
    damage(tmp_path / "sft")
    with pytest.raises(
        CheckpointError,
        match=(
            r"checkpoints/3 is damaged: ema.w is not.*\nBring it back.*or remove .*/sft to run that"
            r" stage"
        ),
    ):
        restore_params(tmp_path / "sft" / "checkpoints", abstract(large(3).ema), part="ema")


def test_the_last_whole_one_is_used_and_the_damaged_ones_are_out_of_the_way(tmp_path):
    folder = tmp_path / "checkpoints"
    with opened(folder, keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(large(step))
    damage(folder / "2")
    notes = folder / "3" / "_CHECKPOINT_METADATA"
    notes.write_bytes(notes.read_bytes().replace(b"init_timestamp", b"inIt_timestamp"))
    with opened(folder, keep=3) as checkpoints:
        state, said = checkpoints.restore_good(abstract(large(0)))
        jax.tree.map(
            np.testing.assert_array_equal,
            dataclasses.replace(state, key=None),
            dataclasses.replace(large(1), key=None),
        )
        assert [
            "damaged_checkpoint_3" in said[0],
            "damaged_checkpoint_2" in said[1],
            len(said),
        ] == [True, True, 2]
        checkpoints.save(large(2))
    assert sorted(entry.name for entry in folder.iterdir()) == ["1", "2"]
    damage(folder / "1")
    damage(folder / "2")
    with (
        opened(folder) as checkpoints,
        pytest.raises(
            CheckpointError, match=r"(?s)no checkpoint .* is whole:.*/2 is.*/1 is.*Nothing was"
        ),
    ):
        checkpoints.restore_good(abstract(large(0)))
    # a second start does not begin afresh either
    assert sorted(entry.name for entry in folder.iterdir()) == ["1", "2"]


def test_a_stage_resumes_from_the_last_whole_checkpoint(tmp_path, capfd):
    expected, folder = toy.run(tmp_path / "whole"), tmp_path / "run"
    toy.run(folder, total_steps=9)
    for file in (folder / "checkpoints" / "9").rglob("manifest.ocdbt"):
        file.write_bytes(file.read_bytes()[:-9])  # cut short
    found = toy.run(folder)
    jax.tree.map(
        np.testing.assert_array_equal,
        dataclasses.replace(found, key=None),
        dataclasses.replace(expected, key=None),
    )
    assert (folder / "metrics.jsonl").read_text() == (
        tmp_path / "whole" / "metrics.jsonl"
    ).read_text()
    said = capfd.readouterr().out
    assert (
        "checkpoints/9 is damaged: " in said
        and "/damaged_checkpoint_9; resuming from step 6" in said
    )


def test_a_stage_never_begins_afresh_beside_checkpoints_that_cannot_be_read(tmp_path):
    toy.run(tmp_path)
    for file in [*(tmp_path / "checkpoints").rglob("manifest.ocdbt")]:
        file.unlink()
    before = (tmp_path / "metrics.jsonl").read_text()
    for _ in range(2):
        with pytest.raises(
            CheckpointError,
            match="(?s)no checkpoint of .* is whole:.*remove .* to begin this stage again",
        ):
            toy.run(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_checkpoint_without_digests_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr("instruct_jax.runtime.checkpoints.digests", lambda state: {})
    with opened(tmp_path) as checkpoints:
        checkpoints.save(at(3))
    with (
        opened(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match="has no digests of its arrays"),
    ):
        checkpoints.restore(abstract(at(0)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8", "bool"])
def test_a_digest_sees_each_element_and_its_place_but_not_the_layout(dtype):
    x = jnp.maximum(9 * jax.random.normal(jax.random.key(0), (8, 6)), 0).astype(dtype)
    found = digests({"x": x})
    assert list(found) == ["x"]
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    assert digests({"x": jax.device_put(x, NamedSharding(mesh, PartitionSpec("a", "b")))}) == found
    others = [
        x.at[7, 5].set(~x[7, 5] if dtype == "bool" else x[7, 5] + 1),
        x[::-1],
        x.T,
        x.reshape(6, 8),
        jnp.zeros_like(x),
    ]
    assert all(digests({"x": other}) != found for other in others[:3] + others[4:])
    assert digests({"x": others[3]}) == found  # a place is a number: the shape is checked before


def test_a_process_that_is_lost_while_it_saves_is_no_full_disk(saved, monkeypatch):
    def lost(*_, **__):
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")

    monkeypatch.setattr(hosts, "is_multihost", lambda: True)
    with opened(saved) as saver:
        monkeypatch.setattr(saver._manager, "save", lost)
        with pytest.raises(HostLostError, match="lost the others .*Gloo.*same command"):
            saver.save(at(5))


def test_full_disk_leaves_the_last_good_checkpoint(saved):
    big = np.random.default_rng(0).normal(size=(1 << 18,)).astype(np.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        with (
            pytest.raises(
                CheckpointError, match="(?s)cannot save.*last good checkpoint is step 3.*Make room"
            ),
            opened(saved) as checkpoints,
        ):
            checkpoints.save(dataclasses.replace(at(5), ema={"w": jnp.asarray(big)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with opened(saved) as checkpoints:
        assert checkpoints.latest() == 3
        assert int(checkpoints.restore(abstract(toy.create())).step) == 3
        checkpoints.save(at(5))  # with room again, the same step saves well
    assert sorted(entry.name for entry in saved.iterdir()) == ["3", "5"]


def test_two_checkpoints_are_kept(tmp_path):
    with opened(tmp_path) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(at(step))
        assert checkpoints.latest() == 5
    assert kept_steps(tmp_path) == [4, 5]


@pytest.mark.alone
def test_saving_a_tiny_state_is_fast(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(at(1))
        checkpoints.wait()
        seconds = []
        for step in range(2, 6):
            start = time.perf_counter()
            checkpoints.save(at(step))
            checkpoints.wait()
            seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.2, seconds
