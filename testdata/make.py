#!/usr/bin/env python3
"""Writes the samples of this folder, from the published format descriptions and the standard library alone.

  make.py          writes them
  make.py --check  fails when a file here is not what would be written
"""
import struct
import sys
from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20


# ---------------------------------------------------------------------------------------------------------------------
# Text form: one run per line, `offset: bytes` or `offset: bytes x count`; everything else is zero.

class Image:
    """Bytes as the runs that were put there. Runs of one line each (`count`) may be written over, others not."""

    def __init__(self, length):
        self.length, self.runs = length, []

    def put(self, at, data, count=1):
        assert not any(start < at + len(data) * count and at < start + len(old) for start, old, n in self.runs if n == 1)
        self.runs.append((at, bytes(data), count))

    def text(self, about):
        lines = [f"# {about}", f"length: {self.length:x}"]
        for at, data, count in self.runs:
            if count > 1:
                lines.append(f"{at:x}: {data.hex()} x {count:x}")
                continue
            for start in range(0, len(data), 32):
                part = data[start:start + 32]
                if any(part):
                    lines.append(f"{at + start:x}: {part.hex()}")
        return "\n".join(lines) + "\n"


def fill(image, at, sector, count, tag, number):
    """`count` sectors from `at` on that all hold the two bytes `tag`, `number`."""
    image.put(at, [tag, number], sector * count // 2)


# ---------------------------------------------------------------------------------------------------------------------
# VHD

SECTOR = 512
ONES = 0xFFFF_FFFF_FFFF_FFFF


def vhd_sum(data, field):
    total = sum(data) - sum(data[field:field + 4])
    return data[:field] + struct.pack(">I", ~total & 0xFFFF_FFFF) + data[field + 4:]


def geometry(size):
    total = min(size // 512, 65535 * 16 * 255)
    assert total < 17 * 4 * 1024, "only small disks here"
    return total // 17 // 4, 4, 17


def footer(kind, size, unique, creator=b"vkit", chs=None):
    cylinders, heads, sectors = chs or geometry(size)
    at = ONES if kind == 2 else 512
    data = struct.pack(">8sIIQI4sI4sQQHBBII16sB", b"conectix", 2, 0x10000, at, 0, creator, 0x10000, b"Wi2k",
                       size, size, cylinders, heads, sectors, kind, 0, unique, 0)
    return vhd_sum(data.ljust(512, b"\0"), 64)


def dynamic_header(table, entries, block, parent=bytes(16), name="", locators=()):
    data = struct.pack(">8sQQIIII16sII", b"cxsparse", ONES, table, 0x10000, entries, block, 0, parent, 0, 0)
    data += name.encode("utf-16-be").ljust(512, b"\0")
    for code, space, length, offset in locators:
        data += struct.pack(">4sIIIQ", code, space, length, 0, offset)
    return vhd_sum(data.ljust(1024, b"\0"), 36)


def bitmap(sectors, size=512):
    data = bytearray(size)
    for sector in sectors:
        data[sector // 8] |= 0x80 >> sector % 8
    return bytes(data)


DYNAMIC_ID = bytes(range(0x10, 0x20))
CHILD_ID = bytes(range(0x20, 0x30))
BLOCK = 4 * KIB


def vhd_fixed():
    image = Image(4 * KIB + SECTOR)
    for sector in (0, 1, 7):
        fill(image, sector * SECTOR, SECTOR, 1, 0xF0, sector)
    image.put(4 * KIB, footer(2, 4 * KIB, bytes(range(0x30, 0x40))))
    return image


def put_block(image, at, block, tag, sectors):
    """A block whose bitmap is at `at`, with `sectors` of it present."""
    image.put(at, bitmap(sectors))
    for sector in sectors:
        fill(image, at + SECTOR + sector * SECTOR, SECTOR, 1, tag, block * 8 + sector)


def vhd_dynamic():
    image = Image(0x5000)
    foot = footer(3, 10 * KIB, DYNAMIC_ID)
    image.put(0, foot)
    image.put(512, dynamic_header(1536, 3, BLOCK))
    image.put(1536, struct.pack(">III", 0x2E00 // 512, 0xFFFF_FFFF, 0xE00 // 512).ljust(512, b"\xFF"))
    put_block(image, 0xE00, 2, 0xD0, (0, 3))
    put_block(image, 0x2E00, 0, 0xD0, (0, 1, 5))
    image.put(0x4E00, foot)
    return image


def vhd_differencing():
    image = Image(0x6000)
    foot = footer(4, 12 * KIB, CHILD_ID)
    relative, absolute = ".\\vhd-dynamic.vhd".encode("utf-16-le"), "C:\\vhdkit\\vhd-dynamic.vhd".encode("utf-16-le")
    locators = [(b"W2ku", 512, len(absolute), 0x800), (b"W2ru", 512, len(relative), 0xA00)]
    image.put(0, foot)
    image.put(512, dynamic_header(1536, 3, BLOCK, DYNAMIC_ID, "C:\\vhdkit\\vhd-dynamic.vhd", locators))
    image.put(1536, struct.pack(">III", 0xFFFF_FFFF, 0x1E00 // 512, 0x3E00 // 512).ljust(512, b"\xFF"))
    image.put(0x800, absolute)
    image.put(0xA00, relative)
    put_block(image, 0x1E00, 1, 0xC0, (7,))
    put_block(image, 0x3E00, 2, 0xC0, (1, 3, 5))
    image.put(0x5E00, foot)
    return image


# ---------------------------------------------------------------------------------------------------------------------
# VHDX

def guid(text):
    import uuid
    return uuid.UUID(text).bytes_le


BAT_REGION = guid("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_REGION = guid("8B7CA206-4790-4B9A-B8FE-575F050F886E")
FILE_PARAMETERS = guid("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
DISK_SIZE = guid("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
DISK_ID = guid("BECA12AB-B2E6-4523-93EF-C309E000C746")
LOGICAL_SECTOR = guid("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
PHYSICAL_SECTOR = guid("CDA348C7-445D-4471-9CC9-E9885251C556")
PARENT_LOCATOR = guid("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
LOCATOR_TYPE = guid("B04AEFB7-D19E-4A81-B789-25B8E9445913")

VECTOR_GUID = guid("00112233-4455-6677-8899-aabbccddeeff")
PARENT_WRITE = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
CHILD_WRITE = "11111111-2222-4333-8444-555555555555"
LOG_GUID = guid("99999999-8888-4777-8666-555544443333")
SIZE = 4 * MIB + 512 * KIB
LOG, METADATA, BAT, SPACE = MIB, 2 * MIB, 3 * MIB, 4 * MIB


def crc_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F6_3B78 if value & 1 else 0)
        table.append(value)
    return table


CRC = crc_table()


def vhdx_sum(data, field=4):
    data = bytearray(data)
    data[field:field + 4] = bytes(4)
    state = 0xFFFF_FFFF
    for byte in data:
        state = state >> 8 ^ CRC[(state ^ byte) & 0xFF]
    data[field:field + 4] = struct.pack("<I", state ^ 0xFFFF_FFFF)
    return bytes(data)


def header(sequence, file_write, data_write, log=bytes(16)):
    data = struct.pack("<4sIQ16s16s16sHHIQ", b"head", 0, sequence, file_write, data_write, log, 0, 1, MIB, LOG)
    return vhdx_sum(data.ljust(4096, b"\0"))


def region_table():
    data = struct.pack("<4sIII", b"regi", 0, 2, 0)
    data += BAT_REGION + struct.pack("<QII", BAT, MIB, 1)
    data += METADATA_REGION + struct.pack("<QII", METADATA, MIB, 1)
    return vhdx_sum(data.ljust(64 * KIB, b"\0"))


def metadata(items):
    """Table and items; every item on an 8 byte boundary from 64 KiB on."""
    table = struct.pack("<8sHH20x", b"metadata", 0, len(items))
    body = b""
    for ident, flags, data in items:
        table += ident + struct.pack("<IIII", 64 * KIB + len(body), len(data), flags, 0)
        body += data + bytes(-len(data) % 8)
    return table.ljust(64 * KIB, b"\0") + body


def locator(pairs):
    texts, rows = b"", b""
    start = 20 + 12 * len(pairs)
    for key, value in pairs:
        key, value = key.encode("utf-16-le"), value.encode("utf-16-le")
        rows += struct.pack("<IIHH", start + len(texts), start + len(texts) + len(key), len(key), len(value))
        texts += key + value
    return LOCATOR_TYPE + struct.pack("<HH", 0, len(pairs)) + rows + texts


CHILD_LOCATOR = locator([
    ("parent_linkage", "{" + PARENT_WRITE + "}"),
    ("relative_path", ".\\vhdx-dynamic.vhdx"),
    ("absolute_win32_path", "\\\\?\\C:\\vhdkit\\vhdx-dynamic.vhdx"),
])


def items(parent=None):
    found = [
        (FILE_PARAMETERS, 4, struct.pack("<II", MIB, 2 if parent else 0)),
        (DISK_SIZE, 6, struct.pack("<Q", SIZE)),
        (DISK_ID, 6, guid("12345678-9abc-4def-8012-3456789abcde")),
        (LOGICAL_SECTOR, 6, struct.pack("<I", 512)),
        (PHYSICAL_SECTOR, 6, struct.pack("<I", 4096)),
    ]
    return found + ([(PARENT_LOCATOR, 4, parent)] if parent else [])


def vhdx(length, data_write, parent=None, log=bytes(16)):
    image = Image(length)
    image.put(0, b"vhdxfile" + "vhdkit samples".encode("utf-16-le"))
    for number in (0, 1):
        image.put((64 + 64 * number) * KIB, header(7 + number, VECTOR_GUID, guid(data_write), log))
        image.put((192 + 64 * number) * KIB, region_table())
    image.put(METADATA, metadata(items(parent)))
    return image


def entry(state, mebibyte=0):
    return struct.pack("<Q", mebibyte << 20 | state)


def vhdx_dynamic():
    image = vhdx(SPACE + 3 * MIB, PARENT_WRITE)
    # Data; zero; unmapped, with its old place kept; never written; data up to the disk's end in the middle of the block.
    image.put(BAT, entry(6, 5) + entry(2) + entry(3, 4) + entry(0) + entry(6, 6))
    fill(image, 4 * MIB, 512, 2048, 0xEE, 0xEE)
    fill(image, 5 * MIB, 512, 2048, 0xD0, 0)
    fill(image, 5 * MIB + 512 * 3, 512, 1, 0xD0, 3)
    fill(image, 6 * MIB, 512, 1024, 0xD0, 4)
    return image


def vhdx_differencing():
    image = vhdx(SPACE + 5 * MIB, CHILD_WRITE, CHILD_LOCATOR)
    # Partial; parent; all here, with bits that must not be looked at; unmapped, never the parent; partial.
    image.put(BAT, entry(7, 4) + entry(0) + entry(6, 5) + entry(3) + entry(7, 6))
    image.put(BAT + 4096 * 8, entry(6, 8))
    image.put(8 * MIB, [0b0000_0110])                       # block 0: sectors 1 and 2
    image.put(8 * MIB + 2 * 256, [0b0101_0101])             # block 2: stale
    image.put(8 * MIB + 4 * 256 + 127, [0b1000_0000])       # block 4: the disk's last sector, 1023 of the block
    fill(image, 4 * MIB, 512, 2048, 0xEE, 0xEE)
    fill(image, 4 * MIB + 512, 512, 2, 0xC0, 0)
    fill(image, 5 * MIB, 512, 2048, 0xC0, 2)
    fill(image, 6 * MIB + 1023 * 512, 512, 1, 0xC0, 4)
    return image


PAGE = 4096


def log_entry(sequence, tail, updates, flushed=SPACE, last=SPACE + 5 * MIB, log=LOG_GUID):
    """`updates`: (offset, page) for a page of data, (offset, length) for zeros."""
    descriptors, data = b"", b""
    for at, what in updates:
        if isinstance(what, int):
            descriptors += struct.pack("<4sIQQQ", b"zero", 0, what, at, sequence)
            continue
        assert len(what) == PAGE
        descriptors += b"desc" + what[4092:] + what[:8] + struct.pack("<QQ", at, sequence)
        data += b"data" + struct.pack("<I", sequence >> 32) + what[8:4092] + struct.pack("<I", sequence & 0xFFFF_FFFF)
    described = -(-(64 + len(descriptors)) // PAGE) * PAGE
    head = struct.pack("<4sIIIQII16sQQ", b"loge", 0, described + len(data), tail, sequence, len(updates), 0, log,
                       flushed, last)
    return vhdx_sum((head + descriptors).ljust(described, b"\0") + data)


def vhdx_dirty_log():
    """As vhdx-dynamic, but block 3 was just given the last MiB and the file one more, and only the log says so."""
    image = vhdx(SPACE + 4 * MIB, PARENT_WRITE, log=LOG_GUID)
    before = entry(6, 5) + entry(2) + entry(3, 4) + entry(0) + entry(6, 6)
    image.put(BAT, before)
    fill(image, 5 * MIB, 512, 2048, 0xD0, 0)
    fill(image, 6 * MIB, 512, 1024, 0xD0, 4)
    fill(image, 7 * MIB, 512, 2048, 0xD0, 3)
    wrong = (entry(6, 1) * 5).ljust(PAGE, b"\0")
    right = (before[:24] + entry(6, 7) + before[32:]).ljust(PAGE, b"\0")
    first = 1 << 32
    ring = {}
    # Applied long ago: before the tail of the active sequence, and of another session.
    ring[MIB - 6 * PAGE] = log_entry(first - 1, MIB - 6 * PAGE, [(BAT, wrong)])
    ring[0x40000] = log_entry(first + 50, 0x40000, [(BAT, wrong)], log=VECTOR_GUID)
    # The active sequence: three entries, the second of which wraps around the ring's end.
    ring[MIB - 4 * PAGE] = log_entry(first, MIB - 4 * PAGE, [(BAT, wrong), (BAT + PAGE, wrong)])
    ring[MIB - PAGE] = log_entry(first + 1, MIB - 4 * PAGE, [(BAT + PAGE, PAGE), (BAT, wrong)])
    ring[PAGE] = log_entry(first + 2, MIB - 4 * PAGE, [(BAT, right)])
    # Torn: its checksum fails, so it never was.
    torn = bytearray(log_entry(first + 3, MIB - 4 * PAGE, [(BAT, wrong)]))
    torn[5000] ^= 1
    ring[3 * PAGE] = bytes(torn)
    for at, data in sorted(ring.items()):
        first_part = data[:MIB - at]
        image.put(LOG + at, first_part)
        image.put(LOG, data[len(first_part):])
    return image


# ---------------------------------------------------------------------------------------------------------------------

def plain(data):
    image = Image(len(data))
    image.put(0, data)
    return image


def samples():
    size = 0x40_0000
    chs = (120, 4, 17)
    unique = bytes(range(16))
    vector = header(1, VECTOR_GUID, VECTOR_GUID)
    empty = log_entry(1, 0, [], 0x40_0000, 0x40_0000, VECTOR_GUID)
    fixed_footer = footer(2, size, unique, b"test", chs)
    dynamic_footer = footer(3, size, unique, b"test", chs)
    small_header = dynamic_header(1536, 2, 0x20_0000)
    assert fixed_footer[64:68].hex() == "fffff002" and dynamic_footer[64:68].hex() == "fffff7f7"
    assert small_header[36:40].hex() == "fffff475"
    assert vector[4:8][::-1].hex() == "26c5251a" and region_table()[4:8][::-1].hex() == "c66b8cae"
    assert empty[4:8][::-1].hex() == "63848303"
    page = bytes(range(256)) * 16
    return {
        "vhd-footer-fixed": ("VHD footer, fixed disk of 4 MiB, checksum fffff002", plain(fixed_footer)),
        "vhd-footer-dynamic": ("VHD footer, dynamic disk of 4 MiB, checksum fffff7f7", plain(dynamic_footer)),
        "vhd-header": ("VHD dynamic header, two blocks of 2 MiB, checksum fffff475", plain(small_header)),
        "vhd-fixed": ("whole fixed VHD of 4 KiB", vhd_fixed()),
        "vhd-dynamic": ("whole dynamic VHD of 10 KiB, blocks of 4 KiB, out of order", vhd_dynamic()),
        "vhd-differencing": ("whole differencing VHD of 12 KiB over vhd-dynamic, which is shorter", vhd_differencing()),
        "vhdx-header": ("VHDX header, checksum 26c5251a", plain(vector)),
        "vhdx-region-table": ("VHDX region table, checksum c66b8cae", plain(region_table())),
        "vhdx-log-empty-entry": ("VHDX log entry without updates, checksum 63848303", plain(empty)),
        "vhdx-log-entry": ("VHDX log entry with a page of data and zeros", plain(
            log_entry(0x1_0000_0002, 0x1000, [(BAT, page), (METADATA, 2 * PAGE)]))),
        "vhdx-metadata": ("VHDX metadata table and items of a differencing disk", plain(metadata(items(CHILD_LOCATOR)))),
        "vhdx-locator": ("VHDX parent locator item", plain(CHILD_LOCATOR)),
        "vhdx-dynamic": ("whole dynamic VHDX, a block in each state", vhdx_dynamic()),
        "vhdx-differencing": ("whole differencing VHDX over vhdx-dynamic, a block in each state", vhdx_differencing()),
        "vhdx-dirty-log": ("whole dynamic VHDX whose log wraps and is not replayed", vhdx_dirty_log()),
    }


def main():
    folder = Path(__file__).parent
    stale = 0
    for name, (about, image) in samples().items():
        path, text = folder / f"{name}.hex", image.text(about)
        if sys.argv[1:] == ["--check"]:
            if not path.exists() or path.read_text() != text:
                stale += 1
                print(f"{path} is not what {Path(__file__).name} writes")
        else:
            path.write_text(text)
    known = {f"{name}.hex" for name in samples()}
    for path in sorted(folder.glob("*.hex")):
        if path.name not in known:
            stale += 1
            print(f"{path} is written by nothing")
    sys.exit(1 if stale else 0)


main()
