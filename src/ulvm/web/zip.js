// A zip file without compression: PNG is compressed already.

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** Little-endian numbers, each given as [bytes, value]. */
function pack(fields) {
  const bytes = new Uint8Array(fields.reduce((sum, [length]) => sum + length, 0));
  let at = 0;
  for (const [length, value] of fields) {
    for (let i = 0; i < length; i++) bytes[at++] = value / 2 ** (8 * i);
  }
  return bytes;
}

/**
 * Source: PKWARE APPNOTE 6.3, sections 4.3.7, 4.3.12 and 4.3.16.
 *
 * @param {{name: string, content: Blob}[]} files Below 4 GiB together, at most 65,535.
 * @returns {Promise<Blob>}
 */
export async function zip(files) {
  const VERSION = 20;
  const UTF8_NAMES = 0x0800;
  const STORED = 0;
  const now = new Date();
  const time = (now.getHours() << 11) | (now.getMinutes() << 5) | (now.getSeconds() >> 1);
  const date = ((now.getFullYear() - 1980) << 9) | ((now.getMonth() + 1) << 5) | now.getDate();
  const parts = [];
  const directory = [];
  let offset = 0;
  let directorySize = 0;
  for (const { name, content } of files) {
    const encoded = new TextEncoder().encode(name);
    const { size } = content;
    const crc = crc32(new Uint8Array(await content.arrayBuffer()));
    const common = [
      [2, VERSION], [2, UTF8_NAMES], [2, STORED], [2, time], [2, date],
      [4, crc], [4, size], [4, size], [2, encoded.length], [2, 0],
    ];
    const local = pack([[4, 0x04034b50], ...common]);
    const central = pack([
      [4, 0x02014b50], [2, VERSION], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset],
    ]);
    parts.push(local, encoded, content);
    directory.push(central, encoded);
    offset += local.length + encoded.length + size;
    directorySize += central.length + encoded.length;
  }
  const count = files.length;
  const end = pack([
    [4, 0x06054b50], [2, 0], [2, 0], [2, count], [2, count], [4, directorySize], [4, offset], [2, 0],
  ]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
