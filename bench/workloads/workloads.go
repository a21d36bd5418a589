package main

// workload is a shell script in /work, as root.
type workload struct {
	name string
	// prepare undoes what an earlier run left. It is not measured.
	prepare, run string
	// mb is how much data it moves, if that is what it is about.
	mb float64
}

var workloads = []workload{
	{name: "npm ci, 350 packages from a cache", prepare: "rm -rf npm/node_modules", run: "cd npm; npm ci --offline --cache /work/npm-cache --no-audit --no-fund --ignore-scripts"},
	{name: "pip install, 50 wheels from a folder", prepare: "rm -rf pip", run: "python3 -m pip install -q --no-index --find-links wheels --target pip -r wheels/requirements.txt"},
	{name: "git clone, 20,000 files, 50 commits", prepare: "rm -rf clone", run: "git clone -q --no-local repo.git clone"},
	{name: "git status, 20,000 files", prepare: "[ -d clone ] || git clone -q --no-local repo.git clone", run: "git -C clone status --porcelain"},
	{name: "tar x, 50,000 files", prepare: "rm -rf tree", run: "tar xf tree.tar"},
	{name: "grep -r, 50,000 files", prepare: "[ -d tree ] || tar xf tree.tar", run: "grep -r 'no such words' tree || true"},
	{name: "rm -r, 50,000 files", prepare: "rm -rf tree; tar xf tree.tar", run: "rm -r tree"},
	{name: "Node.js, CPU", run: `node -e '
let sum = 0; const map = new Map();
for (let i = 0; i < 3e8; i++) sum = (sum * 31 + i) | 0;
for (let i = 0; i < 2e6; i++) map.set("k" + (i % 5000), i);
console.log(sum, map.size)'`},
	{name: "Python, CPU", run: `python3 -c '
total = 0
for i in range(20_000_000): total = (total * 31 + i) & 0xffffffff
words = sorted(str(i * 7919 % 1000003) for i in range(500_000))
print(total, words[0])'`},
	{name: "SQLite, 2,000 transactions of 50 inserts", prepare: "rm -f t.db*", run: `python3 -c '
import sqlite3
db = sqlite3.connect("t.db", isolation_level=None)
# The disk is not what is measured.
db.execute("PRAGMA synchronous=OFF")
db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, value REAL)")
for i in range(2000):
    db.execute("BEGIN")
    db.executemany("INSERT INTO t (name, value) VALUES (?, ?)", ((f"name {i} {j}", i * j / 7) for j in range(50)))
    db.execute("COMMIT")
db.execute("CREATE INDEX names ON t (name)")'`},
	{name: "SQLite, 100,000 selects by an index", run: `python3 -c '
import sqlite3
db = sqlite3.connect("t.db")
print(sum(db.execute("SELECT value FROM t WHERE name = ?", (f"name {i % 2000} {i % 50}",)).fetchone() is not None for i in range(100_000)))'`},
	{name: "pipe, writes of 4 KiB, 400 MB", mb: 400, run: "dd if=/dev/zero bs=4096 count=97656 | dd of=/dev/null bs=4096"},
	{name: "pipe, writes of 64 KiB, 2 GB", mb: 2000, run: "dd if=/dev/zero bs=65536 count=30518 | dd of=/dev/null bs=65536"},
	{name: "file, written and read, 1 GB", prepare: "rm -f file", mb: 2000, run: "dd if=/dev/zero of=file bs=1M count=954; dd if=file of=/dev/null bs=1M"},
	{name: "/bin/true, 500 times", run: "for i in $(seq 500); do /bin/true; done"},
	{name: "node -v, 30 times", run: "for i in $(seq 30); do node -v; done"},
}
