// The kinds of host that there are, and how this one becomes one of them, for as long as a program runs: namespaces with a
// /dev and a copy of the tree of their own, above which everything is as it was.

/** On an emulated processor JS is slow: less than elsewhere, and nothing that test:lab runs. */
const IN_LAB = [
  'test/conformance/capabilities.test.ts',
  ...['host', 'open', 'probe'].map((name) => `test/unit/${name}.test.ts`),
];

/**
 * `about`: what it is. `device`: what is at /dev/kvm, as shell commands; without it what this host has. `user`: who runs the
 * tests. `compiler: false`: no compiler on the PATH, and no addon built. `platform`: what process.platform says.
 * `lab`: it is the lab, its kernel booted with these parameters; `suites`: what runs there.
 */
export const kinds = {
  'no-device': { about: 'there is no /dev/kvm', device: ':' },
  'no-permission': {
    about: '/dev/kvm is there, and this user may not open it',
    device: 'touch "$dev/kvm"; chmod 600 "$dev/kvm"',
    user: 65_534,
  },
  'regular-file': {
    about: 'a file is where /dev/kvm should be',
    device: 'touch "$dev/kvm"; chmod 666 "$dev/kvm"',
  },
  'no-compiler': { about: 'there is no compiler, and so no addon', compiler: false },
  'other-platform': { about: 'process.platform is not linux', platform: 'darwin' },
  lab: { about: 'KVM with everything: the lab', lab: [], suites: IN_LAB },
  'lab-no-private-memory': {
    about: 'KVM without private memory: the lab without the TDP MMU',
    lab: ['kvm.tdp_mmu=0'],
    suites: [...IN_LAB, 'test/unit/cli-demo.test.ts', 'test/unit/examples.test.ts'],
  },
};

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** What a compiler's package brings, by the name of the command, as the shell's patterns. */
const COMPILERS = '*g++* *gcc* cc c++ *clang* make gmake as ld ld.* python python3 python3.* cpp c89 c99';

/**
 * A script of sh that makes the host, and then executes its arguments there, in a copy of the tree that is forgotten.
 * @param root the tree. The copy is in its place; for another user, who may not reach that, it is in the folder
 * @param folder a folder that the program may write to
 */
export function hostScript({ device, user, compiler, platform }, { root, folder }) {
  const lines = [
    `own=${quote(folder)}/own; root=${quote(root)}; lower="$root"`,
    'mkdir "$own"; mount -t tmpfs -o mode=755 tmpfs "$own"; mkdir "$own/upper" "$own/work" "$own/home" "$own/tree"',
    ...(user === undefined ? [] : ['root="$own/tree"']),
    'mount -t overlay -o "lowerdir=$lower,upperdir=$own/upper,workdir=$own/work" overlay "$root"',
    'cd "$root"; export HOME="$own/home"; mount -t proc proc /proc',
  ];
  if (device !== undefined)
    lines.push(
      'dev="$own/dev"; mkdir "$dev"; mount -t tmpfs -o mode=755 tmpfs "$dev"',
      'for node in /dev/*; do name=$(basename "$node"); case "$name" in kvm) continue;; esac',
      // Links as they are; of the rest what programs use.
      'if [ -L "$node" ]; then cp -P "$node" "$dev/"; continue; fi',
      'case "$name" in',
      'null|zero|full|random|urandom|tty|ptmx|userfaultfd) touch "$dev/$name"; mount --bind "$node" "$dev/$name";;',
      'pts|shm|hugepages|mqueue) mkdir "$dev/$name"; mount --rbind "$node" "$dev/$name";;',
      'esac; done',
      device,
      'mount --move "$dev" /dev',
    );
  if (compiler === false)
    lines.push(
      // Links to every command but those; of two with one name the first is kept.
      'rm -rf build prebuilds; mkdir "$own/bin"; IFS=:',
      'for folder in $PATH; do ln -s "$folder"/* "$own/bin/" 2>/dev/null || true; done; unset IFS',
      `(cd "$own/bin" && rm -f ${COMPILERS}); export PATH="$own/bin"`,
    );
  if (platform !== undefined)
    lines.push(
      `export NODE_OPTIONS="--import=$root/scripts/pretend-platform.mjs" VMEXIT_PRETEND_PLATFORM=${quote(platform)}`,
    );
  if (user !== undefined)
    lines.push(
      // What the tests write lies in the tree's copy; the folder takes the report.
      `chmod 777 ${quote(folder)} "$own/home" . test node_modules; rm -rf node_modules/.vite node_modules/.vite-temp`,
      `exec setpriv --reuid=${user} --regid=${user} --clear-groups "$@"`,
    );
  else lines.push('exec "$@"');
  return lines.join('\n');
}
