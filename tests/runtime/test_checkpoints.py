"""Checkpoints keep everything, and refuse what does not fit."""

import gc
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from runtime import toy

from instruct_jax.runtime.checkpoints import CheckpointError, Checkpoints, restore_params, saved_fingerprints

# where a save or a restore fails, orbax leaves futures behind that complain when they are collected, in whatever test runs then
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
    with pytest.raises(CheckpointError, match="cannot read the checkpoint .*/10: "):
        saved_fingerprints(tmp_path)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def opened(folder, **options):
    return Checkpoints(folder, **({"fingerprints": toy.FINGERPRINTS} | options))


def at(step, **options):
    return toy.create(**options).replace(step=jnp.asarray(step, jnp.int32))


@pytest.fixture
def saved(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(at(3))
    return tmp_path


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_keys_survive(tmp_path, impl):
    state = toy.create().replace(key=jax.random.key(5, impl=impl))
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
    state = state.replace(params={"w": jax.device_put(jnp.zeros((devices * 4096,)), layout)}, opt_state=(), ema=None)
    grow = jax.jit(lambda s: s.replace(step=s.step + 1, params={"w": s.params["w"] + 1}), donate_argnums=0)
    with opened(tmp_path, keep=9) as checkpoints:
        for _ in range(4):
            state = grow(state)
            checkpoints.save(state)  # the next grow reuses the memory while this is still being written
        checkpoints.wait()
        for step in range(1, 5):
            found = checkpoints.restore(abstract(state), step)
            assert found.params["w"].sharding == state.params["w"].sharding
            np.testing.assert_array_equal(found.params["w"], step)


def test_epochs_survive_the_saves_between_them(tmp_path):
    """A checkpoint of every epoch stays, whatever else was saved in between by the clock or a signal."""
    with opened(tmp_path, keep=1, keep_every=10) as checkpoints:
        for step in (10, 13, 17, 20, 25):
            checkpoints.save(at(step))
        checkpoints.wait()
        assert set(checkpoints._manager.all_steps()) == {10, 20, 25}


def test_params_alone(saved):
    params = restore_params(saved, abstract(toy.create().params))
    assert params.keys() == {"w", "b"}
    np.testing.assert_array_equal(params["w"], 2.0)
    np.testing.assert_array_equal(restore_params(saved, abstract(toy.create().params["w"]), part="ema/w"), 2.0)


def test_another_shape_is_refused_by_name(saved):
    message = r"3: .*ema\.w is float32\[4\] in the checkpoint but float32\[5\] here.*new run folder"
    with opened(saved) as checkpoints, pytest.raises(CheckpointError, match=message):
        checkpoints.restore(abstract(at(0, width=5)))
    with pytest.raises(CheckpointError, match=r"params\.w is float32\[4\] in the checkpoint but float32\[5\] here"):
        restore_params(saved, abstract(toy.create(width=5).params))


def test_missing_and_left_over_leaves_are_refused(saved):
    state = toy.create()
    with opened(saved) as checkpoints:
        with pytest.raises(CheckpointError, match=r"ema\.b is float32\[\] in the checkpoint but nothing here"):
            checkpoints.restore(abstract(state.replace(ema=None)))
        with pytest.raises(CheckpointError, match=r"params\.new is nothing in the checkpoint but float32\[2\] here"):
            checkpoints.restore(abstract(state.replace(params=state.params | {"new": jnp.zeros(2)})))
        with pytest.raises(CheckpointError, match=r"kl_coef is float32\[\] in the checkpoint but bfloat16\[\] here"):
            checkpoints.restore(abstract(state.replace(kl_coef=jnp.zeros((), jnp.bfloat16))))


def test_another_tokenizer_is_refused(saved):
    other = {"model": "toy", "tokenizer": "t2"}
    message = "another tokenizer: t1 there, t2 now.  Use the same tokenizer, or start a new run folder"
    with opened(saved, fingerprints=other) as checkpoints, pytest.raises(CheckpointError, match=message):
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
    with opened(saved) as checkpoints, pytest.raises(CheckpointError, match="(?s)cannot read the checkpoint .*3.*Remove that folder"):
        checkpoints.restore(abstract(toy.create()))


def test_full_disk_leaves_the_last_good_checkpoint(saved):
    big = np.random.default_rng(0).normal(size=(1 << 18,)).astype(np.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        with pytest.raises(CheckpointError, match="(?s)cannot save.*last good checkpoint is step 3.*Make room"):
            with opened(saved) as checkpoints:
                checkpoints.save(at(5).replace(ema={"w": jnp.asarray(big)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with opened(saved) as checkpoints:
        assert checkpoints.latest() == 3
        assert int(checkpoints.restore(abstract(toy.create())).step) == 3
        checkpoints.save(at(5))  # with room again, the same step saves well
    assert sorted(entry.name for entry in saved.iterdir()) == ["3", "5"]


@pytest.mark.parametrize(("mode", "kept", "best"), [("max", {2, 4, 5}, 2), ("min", {1, 4, 5}, 1)])
def test_keeps_the_last_ones_and_the_best(tmp_path, mode, kept, best):
    with opened(tmp_path, keep=2, best="eval/x", best_mode=mode) as checkpoints:
        for step, score in [(1, -3.0), (2, 9.0), (3, 1.0), (4, 2.0)]:
            checkpoints.save(at(step), {"eval/x": score, "other": 0.0})
        checkpoints.save(at(5))  # nothing was measured
    assert {int(entry.name) for entry in tmp_path.iterdir()} == kept
    with opened(tmp_path, best="eval/x", best_mode=mode) as checkpoints:
        assert (checkpoints.latest(), checkpoints.best_step()) == (5, best)


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
