"""Drives, with both clients."""

import pytest
from conftest import async_client, unique
from test_snapshots import sh
from test_sync import refused
from vercel.sandbox.sync import DriveMount, DriveQueryByName

SIZE = 64 << 20


@pytest.fixture
def drive(client):
    drive, created = client.get_or_create_drive(name=unique("drive"), max_size_bytes=SIZE)
    assert created
    yield drive
    drive.delete()


class TestDrives:
    def test_made_found_and_listed(self, client, drive):
        again, created = client.get_or_create_drive(name=drive.name, max_size_bytes=SIZE)
        assert not created
        assert (again.id, again.max_size_bytes, again.current_session_id) == (drive.id, SIZE, None)
        assert client.get_drive(name_or_id=drive.name).id == drive.id
        listed = client.query_drives(query=DriveQueryByName(name_prefix=drive.name))
        assert [d.id for d in listed] == [drive.id]

    def test_one_writer_and_frozen_copies(self, client, drive):
        with client.create_sandbox(mounts={"/data": drive}, execution_time_limit=60) as writer:
            sh(writer, "echo first > /data/file")
            held = client.get_drive(name_or_id=drive.name)
            assert held.current_sandbox_name == writer.name
            assert held.current_session_id == writer.current_session_id
            with refused(409, "conflict"):
                client.create_sandbox(mounts={"/data": drive}, execution_time_limit=60)
            with refused(409, "conflict"):
                drive.delete()
            with client.create_sandbox(mounts={"/data": drive.snapshot()}, execution_time_limit=60) as reader:
                sh(writer, "echo second > /data/file")
                assert sh(reader, "cat /data/file; touch /data/x 2>/dev/null || echo refused") == "first\nrefused"
        mount = DriveMount(drive.name)
        with client.create_sandbox(mounts={"/elsewhere": mount}, execution_time_limit=60) as following:
            assert sh(following, "cat /elsewhere/file") == "second"

    def test_forked(self, client, drive):
        with client.create_sandbox(mounts={"/data": drive}, execution_time_limit=60) as writer:
            sh(writer, "echo first > /data/file")
            fork = drive.fork(name=unique("fork"))
            try:
                assert (fork.max_size_bytes, fork.parent_drive_id, fork.root_drive_id) == (SIZE, drive.id, drive.id)
                with refused(409, "conflict"):
                    drive.fork(name=fork.name)
                sh(writer, "echo second > /data/file")
                with client.create_sandbox(mounts={"/data": fork}, execution_time_limit=60) as other:
                    assert sh(other, "cat /data/file; echo third > /data/file") == "first"
                assert sh(writer, "cat /data/file") == "second"
                again = fork.fork(name=unique("fork"))
                assert (again.parent_drive_id, again.root_drive_id) == (fork.id, drive.id)
                again.delete()
            finally:
                fork.delete()
        with refused(404, "not_found"):
            fork.fork(name=unique("fork"))

    def test_deleted(self, client):
        drive, _ = client.get_or_create_drive(name=unique("drive"))
        drive.delete()
        with refused(404, "not_found"):
            client.get_drive(name_or_id=drive.name)
        with refused(400, "bad_request"):
            client.create_sandbox(mounts={"/data": drive})


class TestAsyncDrives:
    @pytest.mark.anyio
    async def test_a_drive_outlives_its_sandbox(self):
        client = async_client()
        drive, _ = await client.get_or_create_drive(name=unique("drive"), max_size_bytes=SIZE)
        try:
            for script, want in (("echo kept > /data/file", ""), ("cat /data/file", "kept")):
                async with client.create_sandbox(mounts={"/data": drive}, execution_time_limit=60) as sandbox:
                    result = await sandbox.run_process("sh", ["-c", script], capture_output=True)
                    assert (result.returncode, result.stdout.strip()) == (0, want)
            assert drive.name in [d.name async for d in client.query_drives()]
        finally:
            await drive.delete()
            await client.aclose()
