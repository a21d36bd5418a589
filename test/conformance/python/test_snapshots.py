"""Snapshots, forks, sessions and retention, with both clients."""

import time

import pytest
from conftest import async_client, unique
from test_sync import refused
from vercel.sandbox import SandboxApiError as AsyncSandboxApiError
from vercel.sandbox import SnapshotRetention as AsyncSnapshotRetention
from vercel.sandbox import SnapshotSource as AsyncSnapshotSource
from vercel.sandbox.sync import (
    SandboxQueryByCurrentSnapshotId,
    SandboxResources,
    SandboxStatus,
    SnapshotRetention,
    SnapshotSource,
)

DAY = 24 * 3600
NONE = "snap_000000000000000000000000"


def sh(sandbox, script):
    result = sandbox.run_process("sh", ["-c", script], capture_output=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def near(milliseconds, days):
    return abs(milliseconds / 1000 - time.time() - days * DAY) < 60


class TestSnapshots:
    def test_files_survive_a_stop(self, client):
        with client.create_sandbox(execution_time_limit=60) as sandbox:
            assert sandbox.persistent is True
            sh(sandbox, "echo kept > file; sudo touch /root/also")
            sandbox.stop()
            assert sandbox.current_snapshot_id.startswith("snap_")
            again = client.get_sandbox(name=sandbox.name)
            assert sh(again, "cat file; sudo ls /root") == "kept\nalso"
            with client.create_sandbox(persistent=False, execution_time_limit=60) as other:
                sh(other, "echo lost > file")
                other.stop()
                assert other.current_snapshot_id is None
                assert sh(other, "ls") == ""

    def test_snapshot_and_create_from_it(self, client):
        with client.create_sandbox(execution_time_limit=60) as sandbox:
            sh(sandbox, "echo saved > file")
            session = sandbox.current_session_id
            snapshot = sandbox.snapshot(expiration=3 * DAY)
            assert [s.status for s in sandbox.list_sessions()] == [SandboxStatus.STOPPED]
            assert (snapshot.status, snapshot.source_session_id) == ("created", session)
            assert snapshot.creation_method == "manual"
            assert snapshot.size_bytes > 0
            assert near(snapshot.expires_at, 3)
            assert client.get_snapshot(snapshot_id=snapshot.id).created_at == snapshot.created_at
            source = SnapshotSource(snapshot_id=snapshot.id)
            with client.create_sandbox(source=source, execution_time_limit=60) as other:
                assert sh(other, "cat file") == "saved"
                second = other.current_session.snapshot(expiration=0)
                assert (second.expires_at, second.parent_id) == (None, snapshot.id)

    def test_lists(self, client):
        name = unique("listed")
        with client.create_sandbox(name=name, execution_time_limit=60) as sandbox:
            made = [sandbox.snapshot().id for _ in range(3)]
            assert [s.id for s in client.query_snapshots(name=name, page_size=2, sort_order="asc")] == made
            assert [s.id for s in sandbox.list_snapshots()] == made[::-1]
            sandbox.run_process("true")
            sessions = list(client.query_sessions(name=name, page_size=2))
            assert [s.status for s in sessions] == [SandboxStatus.RUNNING] + [SandboxStatus.STOPPED] * 3
            assert {s.sandbox_name for s in sessions} == {name}
            found = client.query_sandboxes(query=SandboxQueryByCurrentSnapshotId(), page_size=2)
            assert name in [s.name for s in found]

    def test_delete(self, client):
        sandbox = client.create_sandbox(name=unique("gone"), execution_time_limit=60)
        snapshot = sandbox.snapshot()
        snapshot.delete()
        assert snapshot.status == "deleted"
        with refused(410, "snapshot_not_found"):
            sandbox.run_process("true")
        with refused(410, "snapshot_not_found"):
            client.create_sandbox(source=SnapshotSource(snapshot_id=snapshot.id))
        with refused(404, "not_found"):
            client.get_snapshot(snapshot_id=NONE)
        anew, created = client.get_or_create_sandbox(name=sandbox.name, execution_time_limit=60)
        try:
            assert created
            assert sh(anew, "ls") == ""
        finally:
            anew.destroy()

    def test_roll_back(self, client):
        with client.create_sandbox(execution_time_limit=60) as sandbox:
            sh(sandbox, "echo first > file")
            first = sandbox.snapshot()
            sh(sandbox, "echo second > file")
            sandbox.stop()
            sandbox.update(current_snapshot_id=first.id)
            assert sh(sandbox, "cat file") == "first"
            with refused(404, "not_found"):
                sandbox.update(current_snapshot_id=NONE)

    def test_retention(self, client):
        retention = SnapshotRetention(count=1, expiration=2 * DAY)
        with client.create_sandbox(snapshot_retention=retention, snapshot_expiration=5 * DAY, execution_time_limit=60) as sandbox:
            assert sandbox.snapshot_retention.count == 1
            assert sandbox.snapshot_expiration.total_seconds() == 5 * DAY
            first, second = sandbox.snapshot(), sandbox.snapshot()
            assert near(second.expires_at, 2)
            assert [(s.id, s.status) for s in sandbox.list_snapshots()] == [(second.id, "created"), (first.id, "deleted")]
            assert client.get_snapshot(snapshot_id=first.id).status == "deleted"
            sandbox.update(snapshot_retention=None)
            assert sandbox.snapshot_retention is None
            assert near(sandbox.snapshot().expires_at, 5)
            assert len([s for s in sandbox.list_snapshots() if s.status == "created"]) == 2
            with refused(400, "bad_request"):
                sandbox.update(snapshot_retention=SnapshotRetention(count=11))

    def test_fork(self, client):
        with client.create_sandbox(env={"FROM": "source"}, tags={"team": "web"}, execution_time_limit=77) as source:
            sh(source, "echo saved > file")
            source.stop()
            with client.fork_sandbox(source_sandbox=source.name) as fork:
                assert fork.tags == {"team": "web"}
                assert fork.execution_time_limit.total_seconds() == 77
                assert sh(fork, 'cat file; echo "$FROM"') == "saved\nsource"
            with client.fork_sandbox(
                source_sandbox=source.name,
                name=unique("fork"),
                env={"FROM": "fork"},
                resources=SandboxResources(vcpus=1),
                persistent=False,
            ) as fork:
                assert (fork.vcpus, fork.persistent) == (1, False)
                assert sh(fork, 'cat file; echo "$FROM"') == "saved\nfork"
        with refused(404, "not_found"):
            client.fork_sandbox(source_sandbox=unique("none"))

    def test_destroying_orphans(self, client):
        sandbox = client.create_sandbox(execution_time_limit=60)
        kept = sandbox.snapshot()
        sandbox.destroy()
        assert client.get_snapshot(snapshot_id=kept.id).status == "created"
        kept.delete()
        sandbox = client.create_sandbox(execution_time_limit=60)
        orphan = sandbox.snapshot()
        sandbox.destroy(delete_orphan_snapshots=True)
        assert client.get_snapshot(snapshot_id=orphan.id).status == "deleted"


@pytest.mark.anyio
class TestAsync:
    @pytest.fixture
    async def client(self):
        client = async_client()
        yield client
        await client.aclose()

    async def sh(self, sandbox, script):
        result = await sandbox.run_process("sh", ["-c", script], capture_output=True)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    async def test_snapshots_and_forks(self, client):
        name = unique("async")
        async with client.create_sandbox(
            name=name, execution_time_limit=60, snapshot_retention=AsyncSnapshotRetention(count=2), destroy=False
        ) as sandbox:
            await self.sh(sandbox, "echo saved > file")
            snapshot = await sandbox.snapshot(expiration=2 * DAY)
            assert near(snapshot.expires_at, 2)
            assert await self.sh(sandbox, "cat file") == "saved"
            source = AsyncSnapshotSource(snapshot_id=snapshot.id)
            async with client.create_sandbox(source=source, execution_time_limit=60) as other:
                assert await self.sh(other, "cat file") == "saved"
            async with client.fork_sandbox(source_sandbox=name, persistent=False) as fork:
                assert await self.sh(fork, "cat file") == "saved"
            await sandbox.stop()
            assert [s.id async for s in client.query_snapshots(name=name)] == [sandbox.current_snapshot_id, snapshot.id]
            await sandbox.update(current_snapshot_id=snapshot.id, snapshot_retention=None)
            assert sandbox.snapshot_retention is None
        await (await client.get_snapshot(snapshot_id=snapshot.id)).delete()
        with pytest.raises(AsyncSandboxApiError) as info:
            await sandbox.run_process("true")
        assert (info.value.status_code, info.value.code) == (410, "snapshot_not_found")
        anew, created = await client.get_or_create_sandbox(name=name, execution_time_limit=60)
        try:
            assert created and anew.name == name
        finally:
            await anew.destroy()
            async for left in client.query_snapshots(name=name):
                await left.delete()

    async def test_stop_saves(self, client):
        async with client.create_sandbox(execution_time_limit=60) as sandbox:
            await self.sh(sandbox, "echo kept > file")
            await sandbox.stop()
            assert sandbox.current_snapshot_id.startswith("snap_")
            assert await self.sh(sandbox, "cat file") == "kept"
