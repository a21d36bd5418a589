"""The asynchronous client; what is the same as in the synchronous is there."""

import io

import anyio
import pytest
from conftest import async_client, unique
from vercel.sandbox import (
    SandboxApiError,
    SandboxPathNotFoundError,
    SandboxQueryByName,
    SandboxStatus,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client():
    client = async_client()
    yield client
    await client.aclose()


@pytest.fixture
async def sandbox(client):
    async with client.create_sandbox(execution_time_limit=60) as sandbox:
        yield sandbox


async def test_life(client):
    name = unique("async")
    async with client.create_sandbox(name=name, execution_time_limit=60) as sandbox:
        assert sandbox.status == SandboxStatus.RUNNING
        found = await client.get_sandbox(name=name)
        assert found.current_session_id == sandbox.current_session_id
        names = [s.name async for s in client.query_sandboxes(query=SandboxQueryByName(name_prefix=name))]
        assert names == [name]
        await sandbox.stop()
        assert sandbox.status == SandboxStatus.STOPPED
        result = await sandbox.run_process("echo", ["again"], capture_output=True)
        assert result.stdout == "again\n"
    with pytest.raises(SandboxApiError) as info:
        await client.get_sandbox(name=name)
    assert (info.value.status_code, info.value.code) == (404, "not_found")


async def test_processes(sandbox):
    result = await sandbox.run_process("sh", ["-c", "echo ü€😀; echo err >&2; exit 3"], capture_output=True)
    assert (result.stdout, result.stderr, result.returncode) == ("ü€😀\n", "err\n", 3)
    stdout = io.StringIO()
    await sandbox.run_process("seq", ["3"], stdout=stdout)
    assert stdout.getvalue() == "1\n2\n3\n"
    process = await sandbox.create_process("sh", ["-c", "echo up; sleep 1000"])
    assert await process.stdout.readline() == "up\n"
    await process.kill()
    assert await process.wait() == 137


async def test_many_at_once(sandbox):
    codes = {}

    async def run(i):
        codes[i] = (await sandbox.run_process("sh", ["-c", f"sleep 0.1; exit {i}"])).returncode

    async with anyio.create_task_group() as group:
        for i in range(20):
            group.start_soon(run, i)
    assert codes == {i: i for i in range(20)}


async def test_cancelling_leaves_the_process(sandbox):
    with anyio.move_on_after(0.5) as scope:
        await sandbox.run_process("sh", ["-c", "sleep 1.5; touch survived"])
    assert scope.cancelled_caught
    wait = "for i in $(seq 100); do [ -e survived ] && exit 0; sleep 0.1; done; exit 1"
    assert (await sandbox.run_process("sh", ["-c", wait])).returncode == 0


async def test_files(sandbox):
    data = bytes(range(256)) * 1000
    await sandbox.fs.write_bytes("dir/data.bin", data)
    assert await sandbox.fs.read_bytes("dir/data.bin") == data
    await sandbox.fs.mkdir("a/b/c")
    assert await sandbox.fs.is_dir("a/b/c")
    with pytest.raises(SandboxPathNotFoundError):
        await sandbox.fs.read_bytes("missing")


async def test_interactive(sandbox):
    async with sandbox.open_interactive("sh", ["-c", "stty size; exit 4"], cols=100, rows=40) as terminal:
        screen = b""
        with pytest.raises(anyio.EndOfStream):
            while True:
                screen += await terminal.stream.receive()
        assert screen == b"40 100\r\n"
        assert await terminal.wait() == 4
