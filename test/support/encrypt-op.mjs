// Issues every command of KVM_MEMORY_ENCRYPT_OP against fake-kvm.c, and prints what reached it and what came back, a
// line of JSON for each. In a process of its own, which the double is preloaded into.
//
//   LD_PRELOAD=fake-kvm.so FAKE_KVM_LOG=FILE node encrypt-op.mjs STATUS
import { readFileSync, writeFileSync } from 'node:fs';
import { openHypervisor, VmType } from '../../dist/index.js';
import { encryptCommands } from '../../dist/uapi/index.js';

const LENGTH = 48;
const PAGE = 4096;
/** Of what has no field that counts it. */
const fixed = { sourceAddr: PAGE, idBlockUaddr: 96, idAuthUaddr: PAGE };
const ENTRIES = [
  { function: 1, eax: 0x11 },
  { function: 7, ebx: 0x77 },
];
const more = {
  KVM_SEV_SNP_LAUNCH_FINISH: { idBlockEn: 1 },
  KVM_TDX_INIT_MEM_REGION: { nrPages: 1, gpa: 0x5000 },
  KVM_SEV_SNP_LAUNCH_UPDATE: { type: 1 },
};

process.env.FAKE_KVM_STATUS = process.argv[2];
const log = process.env.FAKE_KVM_LOG;
const hv = openHypervisor({ backend: 'kvm', device: '/dev/null' });
const vms = { Sev: hv.createVm(), TdxVm: hv.createVm({ type: VmType.TDX }) };
const on = { ...vms, TdxVcpu: vms.TdxVm.createVcpu() };
const memory = vms.Sev.allocate(4 * PAGE);
const hex = (bytes) => Buffer.from(bytes).toString('hex');
const plain = (_, value) =>
  typeof value === 'bigint' ? Number(value) : value instanceof Uint8Array ? hex(value) : value;

let pattern = 1;
for (const [name, { family, data: struct, list, pointers }] of Object.entries(encryptCommands)) {
  const given = { ...more[name] };
  const targets = Object.entries(pointers).map(([field, { to, length }], i) => {
    const size = fixed[field] ?? LENGTH;
    const before = new Uint8Array(size).fill(to === 'out' ? 0 : pattern++);
    const offset = i * PAGE;
    if (to === 'memory') {
      memory.write(offset, before);
      given[field] = { memory, offset };
      if (length !== undefined) given[length] = size;
    } else given[field] = before;
    return { field, to, size, offset, at: struct.fields[field].offset, before: hex(before) };
  });
  const entries = list ? ENTRIES : [];
  const size = struct === undefined ? 0 : struct.size + entries.length * 40;
  process.env.FAKE_KVM_PLAN = [size, ...targets.map(({ at, size }) => `${at}:${size}`)].join(',');
  writeFileSync(log, '');
  const op = {
    ...(struct && { data: given }),
    entries,
    ...(struct ? {} : { value: 0x1234n }),
    sevFd: 9,
    flags: 1,
  };
  let answer;
  let error;
  try {
    answer = on[family].memoryEncryptOp(name, op);
  } catch (thrown) {
    error = { code: thrown.code, message: thrown.message };
    answer = thrown.answer;
  }
  const reached = Object.fromEntries(
    readFileSync(log, 'utf8')
      .trim()
      .split('\n')
      .map((line) => line.split(' ')),
  );
  const after = targets.map(({ field, to, size, offset }) =>
    hex(to === 'memory' ? memory.read(offset, size) : given[field]),
  );
  console.log(JSON.stringify({ name, reached, targets, after, answer, error }, plain));
}
