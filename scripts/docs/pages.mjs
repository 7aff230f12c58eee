// The pages of the reference: a name is on the first page one of whose files declares it. Files are those of src/,
// without their ending.

/** @type {readonly { page: string, title: string, about: string, files: readonly RegExp[] }[]} */
export const pages = [
  {
    page: 'hypervisor',
    title: 'Hypervisor, VMs and vCPUs',
    about: 'Opening KVM or the simulator, making VMs, running vCPUs, and what an exit is about.',
    files: [
      /^open$/,
      /^hypervisor\/(hypervisor|vm|vm-\w+|vcpu|vcpu-\w+|kvm-device|event-fd|encrypt-op|device-\w+|regs|live-regs|run-page|exit-arms|msr-filter|stats|coalesced-ring|xsave-area|enabled-caps|gsi-routing|args|abort)$/,
    ],
  },
  {
    page: 'memory',
    title: 'Guest memory',
    about: 'Memory that host and guest share, private memory, and what a VM has where.',
    files: [/^hypervisor\/(guest-|memory-map|ranges|userfault|dirty-ring)/, /^vmm\/dirty-pages$/],
  },
  {
    page: 'guests',
    title: 'Guests',
    about: 'Programs for a guest, where they go in its memory, and the usual small machine to run them on.',
    files: [/^vmm\/(guest|image|elf|formats|loader|machine|modes|descriptors|page-tables)$/],
  },
  {
    page: 'run-loop',
    title: 'Run loop and devices',
    about: 'The loop around KVM_RUN, devices on buses, and what shows how a guest runs.',
    files: [/^vmm\/(run-loop|run-loops|threads\/[\w-]+|bus|devices|trace|exceptions|registers|disassemble)$/],
  },
  {
    page: 'private-memory',
    title: 'Memory faults and conversions',
    about: 'Serving KVM_EXIT_MEMORY_FAULT, and moving pages between private and shared.',
    files: [/^vmm\/(memory-faults|conversion|policy)$/],
  },
  {
    page: 'pager',
    title: 'Demand paging',
    about: 'Guests that run before their memory is there.',
    files: [/^vmm\/pager\//],
  },
  {
    page: 'snapshots',
    title: 'Snapshots',
    about: 'A machine in a file, and the machine again.',
    files: [/^vmm\/snapshot\//],
  },
  {
    page: 'migration',
    title: 'Migration',
    about: 'A running guest goes to another process or host.',
    files: [/^vmm\/migration\//],
  },
  {
    page: 'replay',
    title: 'Record and replay',
    about: 'A recorded session again, without KVM.',
    files: [/^replay\//],
  },
  {
    page: 'features',
    title: 'Features of a host',
    about: 'What a hypervisor can do, found by trying, and why it lacks the rest.',
    files: [/^probe\//],
  },
  {
    page: 'errors',
    title: 'Errors',
    about: 'What is thrown, and the codes by which programs tell errors apart.',
    files: [/^hypervisor\/errors$/],
  },
  {
    page: 'backend',
    title: 'Backends',
    about: 'What is under the hypervisor: for tests that put something in between, and for observers.',
    files: [/^hypervisor\/(backend|diagnostics)$/],
  },
  {
    page: 'simulator',
    title: 'The simulator',
    about: 'Opening the simulator alone, and what a simulated host can be told to be.',
    files: [/^simulator$/, /^sim\//],
  },
  {
    page: 'uapi-constants',
    title: 'Constants of the kernel',
    about: 'Capabilities, exits, flags and errnos, by the names that the kernel has for them.',
    files: [/^uapi\/(cap|constants|errno|exit)$/, /^uapi\/constants\//],
  },
  {
    page: 'uapi-exits',
    title: 'Exits',
    about: 'struct kvm_run, what a return of KVM_RUN means, and exits as objects and sentences.',
    files: [/^uapi\/(exits|kvm-run|outcome|dialects|text)$/],
  },
  {
    page: 'uapi-ioctls',
    title: 'Ioctls',
    about: 'The table of ioctls: on what each is known, and what its argument is.',
    files: [/^uapi\/ioctls$/],
  },
  {
    page: 'uapi-structs',
    title: 'Structs of the kernel',
    about: 'The layouts of arguments, and what reads and writes them.',
    files: [/^uapi\/(structs|x86|encryption|encrypt-commands|xen|xsave|layout)$/],
  },
];
