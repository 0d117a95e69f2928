#!/usr/bin/env python3
"""Runs vhdkit beside the least work that could do the same (the floor) and beside other programs, and prints a table.

Every repetition runs each contender of a group once, in rotating order, so a ratio is taken between neighbours in
time; the table shows the median of those ratios. Time is wall time until everything is durable (fsync included), with
the inputs in the page cache and the outputs new. Every output is read back by the few lines below that know the
formats, which share nothing with the program, and compared with what it must hold; a wrong byte ends the run.

    cargo build --release && benches/compare.py --dir /tmp/compare
    benches/compare.py --dir /tmp/compare --only 'merge|reflink' --reps 15

Needs Python 3.9, cc, and some 5 GiB in --dir. Peers on PATH join in: qemu-img, 7zz, vhd-util. The reflink groups make
file systems in loop mounts, for which they need root, mkfs.xfs and mkfs.btrfs.
"""
import argparse, array, itertools, os, random, re, shlex, shutil, statistics, struct, subprocess, sys, time

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
BLOCK = 2 * MIB
HERE = os.path.dirname(os.path.abspath(__file__))

FLOOR = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
enum { CHUNK = 2 << 20 };
/* apply LIST SOURCE TARGET: copies the "offset length" runs of LIST in place, as one thread with one buffer does. */
int main(int count, char **words) {
    char *buffer = aligned_alloc(4096, CHUNK);
    FILE *list = count == 4 ? fopen(words[1], "r") : 0;
    int source = list ? open(words[2], O_RDONLY) : -1, target = list ? open(words[3], O_WRONLY) : -1;
    long long at, left;
    if (source < 0 || target < 0) return 2;
    while (fscanf(list, "%lld %lld", &at, &left) == 2)
        for (; left > 0; at += CHUNK, left -= CHUNK) {
            size_t part = left < CHUNK ? left : CHUNK;
            if (pread(source, buffer, part, at) != part || pwrite(target, buffer, part, at) != part) return 1;
        }
    return 0;
}
"""


# ------------------------------------------------------------------ workloads
def spread(name, total, want, low, high, align):
    """Runs of `low` to `high` bytes, `want` bytes in all, in order and apart, anywhere in `total`; the same each time."""
    rng, lengths = random.Random(name), []
    while sum(lengths) < want:
        length = int(low * (high / low) ** rng.random()) // align * align
        lengths.append(max(align, min(length, want - sum(lengths))))
    free = (total - sum(lengths)) // align
    runs, used = [], 0
    for length, gap in zip(lengths, sorted(rng.randint(0, free) for _ in lengths)):
        runs.append((gap * align + used, length))
        used += length
    return runs


def scatter(name, total, want):
    """Single 4 KiB writes."""
    return [(page * 4096, 4096) for page in sorted(random.Random(name).sample(range(total // 4096), want // 4096))]


def union(*layouts):
    """What any of the layouts covers."""
    out = []
    for start, length in sorted(run for layout in layouts for run in layout):
        if out and start <= out[-1][0] + out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], start + length - out[-1][0]))
        else:
            out.append((start, length))
    return out


class Bytes:
    """Bytes that depend on the layer and the place: a page in the wrong place never compares equal."""

    def __init__(self, layer):
        self.pool, self.layer = random.Random(layer).randbytes(8 * MIB), layer

    def at(self, offset, length):
        out = bytearray()
        for page in range(offset, offset + length, 4096):
            start = page // 4096 * 2654435761 % len(self.pool) // 4096 * 4096
            out += struct.pack("<QQ", self.layer, page) + self.pool[start + 16:start + 4096]
        return out


def by_block(layout):
    blocks = {}
    for start, length in layout:
        for at in range(start // BLOCK * BLOCK, start + length, BLOCK):
            first, last = max(start, at), min(start + length, at + BLOCK)
            blocks.setdefault(at // BLOCK, []).append((first - at, last - first))
    return sorted(blocks.items())


def up(value, unit):
    return -(-value // unit) * unit


def fill_raw(path, size, layout, data):
    with open(path, "r+b" if os.path.exists(path) else "w+b") as file:
        file.truncate(size)
        for start, length in layout:
            for at in range(start, start + length, BLOCK):
                os.pwrite(file.fileno(), data.at(at, min(BLOCK, start + length - at)), at)


def bits(runs, order):
    """The sector bitmap of a block; `order` says where sector 0 is: VHD in the highest bit of a byte, VHDX in the lowest."""
    total, value = BLOCK // 512, 0
    for start, length in runs:
        shift = total - (start + length) // 512 if order == "big" else start // 512
        value |= (1 << length // 512) - 1 << shift
    return value.to_bytes(total // 8, order)


def fill_vhd(path, layout, data):
    """Puts `layout` into a new dynamic or differencing VHD."""
    with open(path, "r+b") as file:
        fd, end = file.fileno(), os.path.getsize(path) - 512
        footer, header = os.pread(fd, 512, end), os.pread(fd, 1024, 512)
        table, differencing = struct.unpack_from(">Q", header, 16)[0], footer[63] == 4
        for block, runs in by_block(layout):
            at = up(end + 512, 4096) - 512
            os.pwrite(fd, bits(runs, "big") if differencing else b"\xff" * 512, at)
            for start, length in runs:
                os.pwrite(fd, data.at(block * BLOCK + start, length), at + 512 + start)
            os.pwrite(fd, struct.pack(">I", at // 512), table + 4 * block)
            end = at + 512 + BLOCK
        end = up(end + 512, 4096) - 512
        os.pwrite(fd, footer, end)


def vhdx_table(fd):
    for entry in range(2):
        region = os.pread(fd, 32, 192 * KIB + 16 + 32 * entry)
        if region[:4] == bytes.fromhex("6677c22d"):
            return struct.unpack_from("<Q", region, 16)[0]
    raise SystemExit("a VHDX without a block table")


def fill_vhdx(path, layout, data, differencing):
    chunk, maps = (1 << 23) * 512 // BLOCK, {}
    with open(path, "r+b") as file:
        fd, end = file.fileno(), up(os.path.getsize(path), MIB)
        table = vhdx_table(fd)
        for block, runs in by_block(layout):
            group, whole = block // chunk, sum(length for _, length in runs) == BLOCK
            if differencing and not whole and group not in maps:
                maps[group] = end
                os.pwrite(fd, struct.pack("<Q", end | 6), table + 8 * ((group + 1) * (chunk + 1) - 1))
                end += MIB
            if group in maps:
                os.pwrite(fd, bits(runs, "little"), maps[group] + block % chunk * (BLOCK // 4096))
            for start, length in runs:
                os.pwrite(fd, data.at(block * BLOCK + start, length), end + start)
            os.pwrite(fd, struct.pack("<Q", end | (7 if differencing and not whole else 6)), table + 8 * (block + group))
            end += BLOCK
        file.truncate(end)


# ------------------------------------------------------------------ reading back
def blocks_of(path):
    """Where each block of an image without a parent is, None for a hole: (offset, length, file offset)."""
    with open(path, "rb") as file:
        yield from blocks_in(file.fileno(), os.path.getsize(path), path.rsplit(".", 1)[1])


def blocks_in(fd, size, kind):
    if kind == "raw":
        yield from ((fd, at, min(BLOCK, size - at), at) for at in range(0, size, BLOCK))
    elif kind == "vhd":
        header, footer = os.pread(fd, 1024, 512), os.pread(fd, 512, size - 512)
        table, _, count, block = struct.unpack_from(">QIII", header, 16)
        entries = struct.unpack(f">{count}I", os.pread(fd, 4 * count, table))
        disk = struct.unpack_from(">Q", footer, 48)[0]
        assert footer[:8] == b"conectix" and footer[63] == 3, "no whole footer of a dynamic VHD"
        for index, entry in enumerate(entries):
            if index * block < disk:
                place = None if entry == 0xFFFFFFFF else entry * 512 + up(block // 4096, 512)
                yield fd, index * block, min(block, disk - index * block), place
    else:
        headers = [os.pread(fd, 4096, at) for at in (64 * KIB, 128 * KIB)]
        current = max(headers, key=lambda header: struct.unpack_from("<Q", header, 8))
        assert current[48:64] == bytes(16), "the log is not empty"
        block = disk = None
        for entry in range(16):
            item = os.pread(fd, 32, vhdx_metadata(fd) + 32 + 32 * entry)
            where = vhdx_metadata(fd) + struct.unpack_from("<I", item, 16)[0]
            if item[:4] == bytes.fromhex("3767a1ca"):
                block = struct.unpack("<I", os.pread(fd, 4, where))[0]
            if item[:4] == bytes.fromhex("2442a52f"):
                disk = struct.unpack("<Q", os.pread(fd, 8, where))[0]
        chunk, table = (1 << 23) * 512 // block, vhdx_table(fd)
        for index in range(-(-disk // block)):
            entry = struct.unpack("<Q", os.pread(fd, 8, table + 8 * (index + index // chunk)))[0]
            place = entry >> 20 << 20 if entry & 7 == 6 else None
            yield fd, index * block, min(block, disk - index * block), place


def vhdx_metadata(fd):
    for entry in range(2):
        region = os.pread(fd, 32, 192 * KIB + 16 + 32 * entry)
        if region[:4] == bytes.fromhex("06a27c8b"):
            return struct.unpack_from("<Q", region, 16)[0]
    raise SystemExit("a VHDX without metadata")


def same(path, expected):
    """Ends the run unless `path` begins with the bytes of the raw disk `expected`."""
    reached, zeros = 0, bytes(BLOCK)
    with open(expected, "rb") as file:
        size = os.path.getsize(expected)
        for fd, offset, length, place in blocks_of(path):
            for at in range(0, length, BLOCK):
                part = min(BLOCK, length - at)
                want = os.pread(file.fileno(), part, offset + at)
                have = zeros[:part] if place is None else os.pread(fd, part, place + at)
                # Space that ends with the file, and the rounded-up end of a disk, read as zeros.
                if have.ljust(part, b"\0") != want.ljust(part, b"\0"):
                    raise SystemExit(f"WRONG BYTES: {path}, within {part} bytes at {offset + at}")
            reached = offset + length
            if reached >= size:
                break
    if reached < size:
        raise SystemExit(f"WRONG SIZE: {path} ends at {reached} of {size}")


def fill_table(path, blocks, block):
    """Gives every block of an image its place, one behind the other, and the file the length for it; no data."""
    with open(path, "r+b") as file:
        fd = file.fileno()
        if path.endswith(".vhd"):
            footer = os.pread(fd, 512, 0)
            header = struct.unpack(">Q", footer[16:24])[0]
            table = struct.unpack(">Q", os.pread(fd, 24, header)[16:])[0]
            stride, first = block + 4096, up(table + 4 * blocks, 4096) + 4096 - 512
            os.pwrite(fd, struct.pack(f">{blocks}I", *((first + n * stride) // 512 for n in range(blocks))), table)
            os.pwrite(fd, footer, first + blocks * stride)
            return
        for entry in range(2):
            region = os.pread(fd, 32, 192 * KIB + 16 + 32 * entry)
            if region[:4] == bytes.fromhex("6677c22d"):
                table, length = struct.unpack_from("<QI", region, 16)
        chunk, first = 4 * GIB // block, up(max(table + length, 4 * MIB), MIB)
        for n in range(0, blocks, chunk):
            last = min(blocks, n + chunk)
            places = array.array("Q", range(first + n * block + 6, first + last * block + 6, block))
            os.pwrite(fd, places.tobytes(), table + 8 * (n + n // chunk))
        os.ftruncate(fd, first + blocks * block)


# ------------------------------------------------------------------ running
def flush(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


class Bench:
    def __init__(self, options):
        self.options, self.dir, self.headed = options, os.path.abspath(options.dir), False
        self.vhdkit = os.path.abspath(options.binary)
        os.makedirs(self.dir, exist_ok=True)
        self.floor = self.path("floor")
        with open(self.path("floor.c"), "w") as file:
            file.write(FLOOR)
        subprocess.run(["cc", "-O2", "-o", self.floor, self.path("floor.c")], check=True)

    def path(self, *names):
        return os.path.join(self.dir, *names)

    def run(self, *words):
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

    def wanted(self, *groups):
        return any(re.search(self.options.only, group) for group in groups)

    def measure(self, words, outputs):
        began = time.monotonic()
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        errors = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        for output in outputs:
            flush(output)
        durable = time.monotonic() - began
        if child.returncode:
            raise SystemExit(f"{' '.join(words)}: exit {child.returncode}: {errors.decode()}")
        return durable, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024

    def group(self, name, cases, *, goal="", copies=(), warm=(), check=None, outputs=("out",), home=None):
        """Measures the commands of `cases` (label -> words, None to leave out), of which the first is the floor.

        In the words {0}, {1}, ... are fresh copies of `copies`, {out} is a file to make. `outputs` are flushed as part
        of the time: copies by number, or the ending of {out}. `check(label, places)` looks at the result of each run.
        """
        if not self.wanted(name):
            return
        print(f"# {name}", file=sys.stderr, flush=True)
        cases = {label: words for label, words in cases.items() if words}
        seen, labels = {label: [] for label in cases}, list(cases)
        work = os.path.join(home or self.dir, "work")
        for round_ in range(self.options.reps):
            turn = round_ % len(labels)
            for label in labels[turn:] + labels[:turn]:
                shutil.rmtree(work, ignore_errors=True)
                os.makedirs(work)
                places = {str(n): os.path.join(work, os.path.basename(file)) for n, file in enumerate(copies)}
                for n, file in enumerate(copies):
                    self.run("cp", "--sparse=always", "--reflink=auto", "--preserve=timestamps", file, places[str(n)])
                    flush(places[str(n)])
                for file in (*warm, *places.values()):
                    with open(file, "rb") as opened:
                        while opened.read(4 * MIB):
                            pass
                words = cases[label]
                ending = next((re.search(r"\{out\}(\.\w+)?", word).group(1) or "" for word in words if "{out}" in word), "")
                places["out"] = os.path.join(work, "out")
                words = [re.sub(r"\{(\w+)\}", lambda match: places[match.group(1)], word) for word in words]
                flushed = [places[str(one)] + (ending if one == "out" else "") for one in outputs]
                seen[label].append(self.measure(words, flushed))
                if check:
                    check(label, {**places, "out": places["out"] + ending})
        shutil.rmtree(work, ignore_errors=True)
        self.show(name, goal, cases, seen)

    def row(self, *cells):
        if not self.headed:
            head = ("group", "contender", "goal", "x floor, median", "x floor, best", "x floor, CPU", "median ms",
                    "peak MiB", "command")
            print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
            self.headed = True
        print("| " + " | ".join(cells) + " |", flush=True)

    def show(self, name, goal, cases, seen):
        """Prints the rows of a group."""
        floor, median = next(iter(seen.values())), statistics.median
        for label, runs in seen.items():
            times, cpu, peak = zip(*runs)
            words = " ".join(cases[label]).replace(self.vhdkit, "vhdkit").replace(self.dir + "/", "")
            self.row(name, label, goal if label == "vhdkit" else "",
                     f"{median(mine[0] / its[0] for mine, its in zip(runs, floor)):.2f}",
                     f"{min(times) / min(run[0] for run in floor):.2f}", f"{sum(cpu) / sum(run[1] for run in floor):.2f}",
                     f"{median(times) * 1000:.0f}", f"{max(peak):.0f}", f"`{words}`")

    # -------------------------------------------------------------- inputs
    def make(self, name, build):
        """The file or directory `name`, built once: it appears whole or not at all."""
        if not os.path.exists(self.path(name)):
            print(f"# making {name}", file=sys.stderr, flush=True)
            shutil.rmtree(self.path("making"), ignore_errors=True)
            os.makedirs(self.path("making"))
            build(self.path("making"))
            os.rename(self.path("making"), self.path(name))
        return self.path(name)

    def raw(self):
        o = self.options
        layout = spread("base", o.size, o.data, 64 * KIB, 32 * MIB, 64 * KIB)
        where = self.make("raw", lambda made: fill_raw(f"{made}/disk.raw", o.size, layout, Bytes(0)))
        return f"{where}/disk.raw"

    def layouts(self, pattern):
        """What the base and its two children hold: "runs", "runs4" (four times as much) or "scatter"."""
        o = self.options
        base = spread("base", o.size, o.data, 64 * KIB, 32 * MIB, 64 * KIB)
        if pattern == "scatter":
            return [base, *(scatter(f"scatter {n}", o.size, o.delta) for n in (1, 2))]
        much = o.delta * int(pattern[4:] or 1)
        return [base, *(spread(f"runs {n}", o.size, much, 2 * MIB, 32 * MIB, MIB) for n in (1, 2))]

    def chain(self, kind, pattern, size=None, stem=""):
        """base <- c1 <- c2, each with its changes; `size` for a disk larger than the changes reach."""
        layouts, size = self.layouts(pattern), size or self.options.size

        def build(made):
            parent = None
            for n, (name, layout) in enumerate(zip(("base", "c1", "c2"), layouts)):
                file = f"{made}/{stem}{name}.{kind}"
                how = ["--parent", parent] if parent else ["--size", str(size), "--block-size", str(BLOCK)]
                self.run(self.vhdkit, "create", *how, file)
                if kind == "vhd":
                    fill_vhd(file, layout, Bytes(n))
                else:
                    fill_vhdx(file, layout, Bytes(n), n > 0)
                parent = file

        return self.make(f"{stem}{kind}-{pattern}-{size}", build)

    def expected(self, pattern):
        """depth-N.raw is what the chain shows from its base to child N; delta-N.txt what lies above the base."""
        layouts = self.layouts(pattern)

        def build(made):
            fill_raw(f"{made}/depth-0.raw", self.options.size, layouts[0], Bytes(0))
            for n in (1, 2):
                self.run("cp", "--sparse=always", f"{made}/depth-{n - 1}.raw", f"{made}/depth-{n}.raw")
                fill_raw(f"{made}/depth-{n}.raw", self.options.size, layouts[n], Bytes(n))
                with open(f"{made}/delta-{n}.txt", "w") as file:
                    file.writelines(f"{start} {length}\n" for start, length in union(*layouts[1:n + 1]))

        return self.make(f"expect-{pattern}", build)

    # -------------------------------------------------------------- groups
    def peer(self, tool, *words):
        return [tool, *words] if shutil.which(tool) else None

    def merges(self, goals, prefix="merge", home=None):
        for (kind, pattern, depth), goal in goals.items():
            name = f"{prefix} {kind} {pattern} depth {depth}"
            if not self.wanted(name):
                continue
            chain, expect = self.chain(kind, pattern), self.expected(pattern)
            delta, flat = f"{expect}/delta-{depth}.txt", f"{expect}/depth-{depth}.raw"
            if home:
                chain, flat = self.moved(home, chain), self.moved(home, flat)
            twice = "vhd-util coalesce -n {2} && vhd-util coalesce -n {1}"
            coalesce = ["coalesce", "-n", "{1}"] if depth == 1 else None
            util = shutil.which("vhd-util") and kind == "vhd" and (["vhd-util", *coalesce] if coalesce else ["sh", "-c", twice])

            def check(label, places, flat=flat):
                if not label.startswith("floor"):
                    same(places["0"], flat)

            self.group(name, {
                "floor: copy in place": [self.floor, delta, flat, "{0}"],
                "vhdkit": [self.vhdkit, "merge", f"{{{depth}}}", "--depth", str(depth), "--quiet"],
                "vhd-util": None if home else util,
            }, goal=goal, copies=[f"{chain}/{n}.{kind}" for n in ("base", "c1", "c2")[:depth + 1]], warm=[flat],
                check=check, outputs=(0,), home=home)

    def moved(self, home, path):
        """A copy of the file or directory on another file system."""
        there = os.path.join(home, os.path.basename(path))
        if not os.path.exists(there):
            self.run("cp", "-a", "--sparse=always", path, there)
        return there

    def converts(self, prefix="convert", home=None, goals=("<= 1.05", "<= 0.9")):
        place = (lambda path: self.moved(home, path)) if home else (lambda path: path)

        def check(label, places):
            same(places["out"], self.raw())

        for kind, qemu in (("vhdx", "vhdx"), ("vhd", "vpc")):
            if self.wanted(f"{prefix} raw to {kind}"):
                raw = place(self.raw())
                self.group(f"{prefix} raw to {kind}", {
                    "floor: cp": ["cp", "--sparse=auto", "--reflink=never", raw, "{out}.raw"],
                    "vhdkit": [self.vhdkit, "convert", "--quiet", "-f", "raw", raw, f"{{out}}.{kind}"],
                    "qemu-img": self.peer("qemu-img", "convert", "-f", "raw", "-O", qemu, raw, f"{{out}}.{kind}"),
                }, goal=goals[0], warm=[raw], check=check, home=home)
            if self.wanted(f"{prefix} {kind} to raw"):
                image = place(f"{self.chain(kind, 'runs')}/base.{kind}")
                self.group(f"{prefix} {kind} to raw", {
                    "floor: cp": ["cp", "--sparse=auto", "--reflink=never", image, "{out}." + kind],
                    "vhdkit": [self.vhdkit, "convert", "--quiet", image, "{out}.raw"],
                    "qemu-img": self.peer("qemu-img", "convert", "-W", "-m", "4", "-f", qemu, "-O", "raw", image, "{out}.raw"),
                }, goal=goals[1], warm=[image], check=check, home=home)

    def growth(self):
        """Merges of the same changes over a small and a huge disk, and of four times the changes."""
        def both(name, goal, one, other, patterns):
            def check(label, places):
                mine = 2 if label == "vhdkit" else 0
                same(places[str(mine)], f"{self.expected(patterns[mine // 2])}/depth-1.raw")

            words = [self.vhdkit, "merge", "--depth", "1", "--quiet"]
            self.group(name, {f"floor: {one[0]}": [*words, "{1}"], "vhdkit": [*words, "{3}"]}, goal=goal,
                       copies=[*one[1], *other[1]], check=check, outputs=())

        def files(pattern, size, stem):
            chain = self.chain("vhdx", pattern, size, stem)
            return [f"{chain}/{stem}{name}.vhdx" for name in ("base", "c1")]

        if self.wanted("growth of the disk"):
            both("growth of the disk", "<= 1.2", ("64 GiB", files("runs", 64 * GIB, "small-")),
                 ("64 TiB", files("runs", 64 * TIB, "huge-")), ("runs", "runs"))
        if self.wanted("growth of the changes"):
            both("growth of the changes", "<= 4", ("1x", files("runs", None, "")), ("4x", files("runs4", None, "more-")),
                 ("runs", "runs4"))

    def shows(self, leaf, flat):
        """Ends the run unless the chain of `leaf` reads as the raw file `flat`."""
        words = f"{shlex.quote(self.vhdkit)} read {shlex.quote(leaf)} | cmp - {shlex.quote(flat)}"
        if subprocess.run(["sh", "-c", words]).returncode:
            raise SystemExit(f"WRONG BYTES: {leaf} does not read as {flat}")

    def reads(self):
        """Whole disks read to nowhere through three files, and single pages of them by one and more threads."""
        for kind, pattern in itertools.product(("vhd", "vhdx"), ("runs", "scatter")):
            names = f"read {kind} {pattern}", f"random read {kind} {pattern}"
            if not self.wanted(*names):
                continue
            chain, flat = self.chain(kind, pattern), f"{self.expected(pattern)}/depth-2.raw"
            files = [f"{chain}/{name}.{kind}" for name in ("c2", "c1", "base")]
            self.shows(files[0], flat)
            self.group(names[0], {
                "floor: dd": ["dd", f"if={flat}", "of=/dev/null", "bs=2M", "status=none"],
                "vhdkit": [self.vhdkit, "read", files[0]],
                "7zz": self.peer("7zz", "x", "-so", files[0]),
            }, goal="<= 0.5" if pattern == "runs" else "<= 1.2", warm=[flat, *files], outputs=())
            if self.wanted(names[1]):
                self.random_reads(names[1], files[0], flat)

    def random_reads(self, name, leaf, flat):
        """By the example of that name, which compares every read with the flat file and times both kinds in turn."""
        driver = os.path.join(os.path.dirname(self.vhdkit), "examples", "random_reads")
        if not os.path.exists(driver):
            print(f"# SKIPPED {name}: cargo build --release --example random_reads", file=sys.stderr)
            return
        said = subprocess.run([driver, leaf, flat], check=True, stdout=subprocess.PIPE, text=True).stdout
        for threads, mine, its, ratio in re.findall(r"(\d+) threads: flat (\d+) ns, chain (\d+) ns .* ([\d.]+)$", said, re.M):
            words = f"`random_reads {leaf} {flat}`".replace(self.dir + "/", "")
            self.row(f"{name}, {threads} threads", "vhdkit", "<= 1.3", ratio, f"{int(its) / int(mine):.2f}", "", "", "", words)

    def tables(self):
        """`info` and `check` of images whose table is huge: with a few blocks, and with all of them."""
        for kind, total, block, full in (("vhd", 2040 * GIB, 2 * MIB, 2040 * GIB), ("vhdx", 64 * TIB, MIB, 8 * TIB)):
            if not self.wanted(f"table info {kind}", f"table check {kind}", f"table check {kind}, every block"):
                continue

            def sparse(made):
                self.run(self.vhdkit, "create", "--size", str(total), "--block-size", str(block), f"{made}/few.{kind}")
                for n in range(16):
                    words = [self.vhdkit, "write", f"{made}/few.{kind}", "--offset", str(total // 17 * (n + 1) // block * block)]
                    subprocess.run(words, input=bytes(range(256)) * 256, check=True, stdout=subprocess.DEVNULL)

            def every(made):
                self.run(self.vhdkit, "create", "--size", str(full), "--block-size", str(block), f"{made}/all.{kind}")
                fill_table(f"{made}/all.{kind}", full // block, block)

            few, all_ = self.make(f"few-{kind}", sparse), self.make(f"all-{kind}", every)
            few, all_ = f"{few}/few.{kind}", f"{all_}/all.{kind}"
            count = str(up(full // block * 8, MIB) // MIB if kind == "vhdx" else 4)
            self.group(f"table info {kind}", {
                "floor: true": ["true"], "vhdkit": [self.vhdkit, "info", few], "qemu-img": self.peer("qemu-img", "info", few),
                "vhdiinfo": self.peer("vhdiinfo", few),
            }, goal="<= 3 ms" if kind == "vhd" else "<= 5 ms, < 12 MiB", warm=[few] if kind == "vhd" else (), outputs=())
            self.group(f"table check {kind}", {
                "floor: true": ["true"], "vhdkit": [self.vhdkit, "check", few],
                "qemu-img": self.peer("qemu-img", "check", few) if kind == "vhdx" else None,
                "vhd-util": self.peer("vhd-util", "check", "-n", few) if kind == "vhd" else None,
            }, goal="<= 100 ms, < 32 MiB", outputs=())
            self.group(f"table check {kind}, every block", {
                "floor: dd of the table": ["dd", f"if={all_}", "of=/dev/null", "bs=1M", f"count={count}", "status=none"],
                "vhdkit": [self.vhdkit, "check", all_],
                "vhd-util": self.peer("vhd-util", "check", "-n", all_) if kind == "vhd" else None,
            }, goal="<= 2, < 64 MiB", outputs=())

    def long_chains(self):
        """Four times the layers, each with one page of its own."""
        if not self.wanted("growth of the chain"):
            return

        def build(made):
            parent, total = None, 64 * MIB
            fill_raw(f"{made}/64.raw", total, [], Bytes(0))
            for n in range(1, 257):
                file = f"{made}/{n}.vhdx"
                how = ["--parent", parent] if parent else ["--size", str(total), "--block-size", str(BLOCK)]
                self.run(self.vhdkit, "create", *how, file)
                at = n * 37 % (total // 4096) * 4096
                subprocess.run([self.vhdkit, "write", file, "--offset", str(at)], input=Bytes(n).at(at, 4096), check=True, stdout=subprocess.DEVNULL)
                fill_raw(f"{made}/{64 if n <= 64 else 256}.raw", total, [(at, 4096)], Bytes(n))
                if n == 64:
                    shutil.copyfile(f"{made}/64.raw", f"{made}/256.raw")
                parent = file

        chain = self.make("long-chain", build)
        for layers in (64, 256):
            self.shows(f"{chain}/{layers}.vhdx", f"{chain}/{layers}.raw")
        for verb, words in (("opened", ["info", "--chain"]), ("read", ["read"])):
            self.group(f"growth of the chain, {verb}", {
                "floor: 64 layers": [self.vhdkit, *words, f"{chain}/64.vhdx"],
                "vhdkit": [self.vhdkit, *words, f"{chain}/256.vhdx"],
            }, goal="<= 4", outputs=())

    def reflinks(self):
        for kind in ("xfs", "btrfs"):
            rows = ("vhd runs depth 1", "vhdx runs depth 1", "raw to vhdx", "vhdx to raw", "raw to vhd", "vhd to raw")
            if not self.wanted(*(f"reflink {kind} {row}" for row in rows)):
                continue
            if os.geteuid() or not shutil.which(f"mkfs.{kind}"):
                print(f"# SKIPPED reflink {kind}: needs root and mkfs.{kind}", file=sys.stderr)
                continue
            image, home = self.path(f"{kind}.img"), self.path(kind)
            with open(image, "wb") as file:
                file.truncate(12 * GIB)
            os.makedirs(home, exist_ok=True)
            self.run(f"mkfs.{kind}", *(["-q", "-m", "reflink=1"] if kind == "xfs" else ["-q"]), image)
            self.run("mount", "-o", "loop", image, home)
            try:
                prefix = f"reflink {kind}"
                self.merges({("vhd", "runs", 1): "<= 0.05", ("vhdx", "runs", 1): "<= 0.05"}, prefix, home)
                self.converts(prefix, home, ("", "<= 0.1"))
            finally:
                self.run("umount", home)
                os.unlink(image)


def size(text):
    units = {"K": KIB, "M": MIB, "G": GIB, "T": TIB}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True, help="where inputs and outputs go; inputs stay for the next run")
    parser.add_argument("--binary", default=os.path.join(HERE, "../target/release/vhdkit"))
    parser.add_argument("--only", default="", metavar="REGEX", help="the groups whose name matches")
    parser.add_argument("--reps", type=int, default=9)
    parser.add_argument("--size", type=size, default=GIB, help="of the disks")
    parser.add_argument("--data", type=size, default=384 * MIB, help="in the base")
    parser.add_argument("--delta", type=size, default=128 * MIB, help="in each child")
    bench = Bench(parser.parse_args())
    bench.merges({
        ("vhd", "runs", 1): "<= 1.0", ("vhd", "runs", 2): "<= 1.0",
        ("vhdx", "runs", 1): "<= 0.9", ("vhdx", "runs", 2): "<= 0.9",
        ("vhd", "scatter", 1): "<= 1.2", ("vhd", "scatter", 2): "<= 1.2",
        ("vhdx", "scatter", 1): "<= 0.9", ("vhdx", "scatter", 2): "<= 0.9",
    })
    bench.converts()
    bench.reads()
    bench.tables()
    bench.growth()
    bench.long_chains()
    bench.reflinks()


if __name__ == "__main__":
    main()
