/** The types of a program, from what `readelf --debug-dump=info` prints of its debug information. */

export interface Entry {
  /** DW_TAG_* without its prefix. */
  readonly tag: string;
  readonly children: Entry[];
  name?: string;
  /** The key of another entry. */
  type?: string;
  /** Bytes. */
  size?: number;
  /** Of a member: bytes from its struct's start. */
  offset?: number;
  /** Of an array's dimension: the last index. */
  bound?: number;
  /** Of an enumerator. */
  value?: bigint;
}

/** By where they stand, as DW_AT_type names them. */
export function entries(text: string): Map<string, Entry> {
  const found = new Map<string, Entry>();
  const open: Entry[] = [];
  let entry: Entry | undefined;
  for (const line of text.split('\n')) {
    const head = /^ *<(\d+)><([0-9a-f]+)>: .*?(?:\(DW_TAG_(\w+)\))?$/.exec(line);
    if (head) {
      const [, depth, key, tag] = head;
      if (tag === undefined) continue; // the end of a list of children
      entry = { tag, children: [] };
      found.set(key!, entry);
      open.length = Number(depth);
      open[Number(depth) - 1]?.children.push(entry);
      open[Number(depth)] = entry;
      continue;
    }
    const [, attribute, rest] = /^ *<[0-9a-f]+> +DW_AT_(\w+) *: (.*)$/.exec(line) ?? [];
    if (entry === undefined || attribute === undefined) continue;
    const value = rest!.replace(/^\(.*?\)(: )?/, '').trim();
    if (attribute === 'name') entry.name = value;
    else if (attribute === 'type') entry.type = /<0x([0-9a-f]+)>/.exec(value)![1]!;
    else if (attribute === 'byte_size') entry.size = Number(value);
    else if (attribute === 'data_member_location') entry.offset = Number(value);
    else if (attribute === 'upper_bound') entry.bound = Number(value);
    else if (attribute === 'const_value') entry.value = BigInt(value);
  }
  return found;
}
