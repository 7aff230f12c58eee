// The C side of the benchmarks: the same ioctls on the same guests as bench/run.mjs, and nothing else.
//   kvm_bench pio|immediate COUNT         nanoseconds per KVM_RUN, with the exit's fields read
//   kvm_bench open COUNT                  nanoseconds from open(2) to the first exit, the median of COUNT VMs
//   kvm_bench dirty-log COUNT             nanoseconds per KVM_GET_DIRTY_LOG of 1 GiB with 1024 dirty pages
//   kvm_bench convert-4k|convert-2m COUNT nanoseconds per conversion that the guest asks for
//   kvm_bench irqfd COUNT                 nanoseconds from an irqfd's signal to the exit of the guest's
//   handler kvm_bench ioeventfd COUNT             nanoseconds of a KVM_RUN that signals an ioeventfd, and of
//   its epoll_wait(2)
#define _GNU_SOURCE
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "bench.h"

#ifndef KVM_HC_MAP_GPA_RANGE
#define KVM_HC_MAP_GPA_RANGE 12
#endif
#ifndef FALLOC_FL_PUNCH_HOLE
#define FALLOC_FL_KEEP_SIZE 1
#define FALLOC_FL_PUNCH_HOLE 2
#endif

#define RAM_SIZE (64ul << 20)
#define AREA 0x40000000ul
#define AREA_SIZE (2ul << 20)
#define CODE 0x1000

struct vm {
  int kvm, vm, vcpu, gmem;
  struct memory ram, area;
  struct kvm_run* run;
  long run_size;
};

static struct vm boot(const void* code, size_t code_size, unsigned long type, int irqchip,
                      const struct kvm_regs* regs) {
  struct vm v = {.gmem = -1, .area = {-1, 0}};
  need((v.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC)) >= 0, "/dev/kvm");
  need(ioctl(v.kvm, KVM_GET_API_VERSION, 0) == KVM_API_VERSION, "API version");
  need((v.vm = ioctl(v.kvm, KVM_CREATE_VM, type)) >= 0, "KVM_CREATE_VM");
  v.ram = allocate(RAM_SIZE);
  struct kvm_userspace_memory_region region = {.memory_size = RAM_SIZE,
                                               .userspace_addr = (uintptr_t)v.ram.data};
  need(ioctl(v.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0, "memory region");
  memcpy(v.ram.data + CODE, code, code_size);

  need(!irqchip || ioctl(v.vm, KVM_CREATE_IRQCHIP, 0) == 0, "KVM_CREATE_IRQCHIP");
  need((v.vcpu = ioctl(v.vm, KVM_CREATE_VCPU, 0)) >= 0, "KVM_CREATE_VCPU");
  v.run_size = ioctl(v.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  v.run = mmap(0, v.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v.vcpu, 0);
  need(v.run != MAP_FAILED, "kvm_run");
  struct kvm_sregs sregs;
  need(ioctl(v.vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
  sregs.cs.base = sregs.cs.selector = 0;
  sregs.ds.base = sregs.ds.selector = 0;
  sregs.es.base = sregs.es.selector = 0;
  sregs.ss.base = sregs.ss.selector = 0;
  need(ioctl(v.vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
  need(ioctl(v.vcpu, KVM_SET_REGS, regs) == 0, "KVM_SET_REGS");
  return v;
}

static void shut(struct vm* v) {
  munmap(v->run, v->run_size);
  close(v->vcpu);
  close(v->vm);
  munmap(v->ram.data, RAM_SIZE);
  close(v->ram.fd);
  close(v->kvm);
}

static const uint8_t kPio[] = {0xe6, 0x80, 0xeb, 0xfc};  // again: out 0x80, al; jmp again
static const struct kvm_regs kStart = {.rip = CODE, .rflags = 2};

static volatile uint64_t sink;

static double pio(long count, int immediate) {
  struct vm v = boot(kPio, sizeof(kPio), 0, 0, &kStart);
  need(ioctl(v.vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
  v.run->immediate_exit = immediate;
  if (immediate) ioctl(v.vcpu, KVM_RUN, 0);  // completes the first OUT
  uint64_t sum = 0;
  const double start = now();
  for (long i = 0; i < count; i++) {
    const int result = ioctl(v.vcpu, KVM_RUN, 0);
    if (immediate) {
      if (result == 0 || errno != EINTR) exit(1);
      continue;
    }
    if (result || v.run->exit_reason != KVM_EXIT_IO || v.run->io.direction != KVM_EXIT_IO_OUT) exit(1);
    sum += v.run->io.port + v.run->io.size + v.run->io.count + *((uint8_t*)v.run + v.run->io.data_offset);
  }
  const double elapsed = now() - start;
  sink = sum;
  shut(&v);
  return elapsed / count;
}

static double registers(long count, unsigned long request) {
  struct vm v = boot(kPio, sizeof(kPio), 0, 0, &kStart);
  struct kvm_regs regs;
  need(ioctl(v.vcpu, KVM_GET_REGS, &regs) == 0, "KVM_GET_REGS");
  uint64_t sum = 0;
  const double start = now();
  for (long i = 0; i < count; i++) {
    if (ioctl(v.vcpu, request, &regs) != 0) exit(1);
    sum += regs.rip;
  }
  const double elapsed = now() - start;
  sink = sum;
  shut(&v);
  return elapsed / count;
}

static int ascending(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

// Not the mean: the first VM of a process, or after one was started from it, takes several times as long.
static double first_exit(long count) {
  double* elapsed = calloc(count, sizeof(double));
  need(elapsed != NULL, "calloc");
  for (long i = 0; i < count; i++) {
    const double start = now();
    struct vm v = boot(kPio, sizeof(kPio), 0, 0, &kStart);
    need(ioctl(v.vcpu, KVM_RUN, 0) == 0 && v.run->exit_reason == KVM_EXIT_IO, "first exit");
    elapsed[i] = now() - start;
    shut(&v);
  }
  qsort(elapsed, count, sizeof(double), ascending);
  const double median = elapsed[count >> 1];
  free(elapsed);
  return median;
}

// again: mov eax, 12; mov edx, 16; vmmcall; mov eax, 12; xor edx, edx; vmmcall; jmp again
static const uint8_t kConvert[] = {0x66, 0xb8, 12,   0,    0,    0,    0x66, 0xba, 16,  0,
                                   0,    0,    0x0f, 0x01, 0xd9, 0x66, 0xb8, 12,   0,   0,
                                   0,    0x66, 0x31, 0xd2, 0x0f, 0x01, 0xd9, 0xeb, 0xe3};

static double convert(long count, uint64_t pages) {
  struct kvm_regs regs = {.rip = CODE, .rflags = 2, .rbx = AREA, .rcx = pages};
  struct vm v = boot(kConvert, sizeof(kConvert), 1 /* KVM_X86_SW_PROTECTED_VM */, 0, &regs);
  v.area = allocate(AREA_SIZE);
  struct kvm_create_guest_memfd create = {.size = AREA_SIZE};
  need((v.gmem = ioctl(v.vm, KVM_CREATE_GUEST_MEMFD, &create)) >= 0, "KVM_CREATE_GUEST_MEMFD");
  struct kvm_userspace_memory_region2 region = {.slot = 1,
                                                .flags = KVM_MEM_GUEST_MEMFD,
                                                .guest_phys_addr = AREA,
                                                .memory_size = AREA_SIZE,
                                                .userspace_addr = (uintptr_t)v.area.data,
                                                .guest_memfd = v.gmem};
  need(ioctl(v.vm, KVM_SET_USER_MEMORY_REGION2, &region) == 0, "region2");
  struct kvm_enable_cap cap = {.cap = 201 /* EXIT_HYPERCALL */, .args = {1 << KVM_HC_MAP_GPA_RANGE}};
  need(ioctl(v.vm, KVM_ENABLE_CAP, &cap) == 0, "KVM_CAP_EXIT_HYPERCALL");

  const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  const double start = now();
  for (long i = 0; i < count; i++) {
    need(ioctl(v.vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
    if (v.run->exit_reason != KVM_EXIT_HYPERCALL || v.run->hypercall.nr != KVM_HC_MAP_GPA_RANGE) exit(1);
    const uint64_t gpa = v.run->hypercall.args[0], size = v.run->hypercall.args[1] * 4096;
    const int to_private = (v.run->hypercall.args[2] & 16) != 0;
    if (gpa < AREA || gpa + size > AREA + AREA_SIZE) exit(1);
    struct kvm_memory_attributes attributes = {gpa, size, to_private ? 8 : 0, 0};
    need(ioctl(v.vm, KVM_SET_MEMORY_ATTRIBUTES, &attributes) == 0, "attributes");
    need(fallocate(to_private ? v.area.fd : v.gmem, punch, gpa - AREA, size) == 0, "punch");
    v.run->hypercall.ret = 0;
  }
  return (now() - start) / count;
}

// again: mov ebx, 0; mov ecx, 1024; next: mov [ebx], al; add ebx, 0x100000; dec ecx; jnz next; out 0x80, al;
// jmp again
static const uint8_t kWrite[] = {0x66, 0xbb, 0,    0,    0,    0,    0x66, 0xb9, 0,    4,
                                 0,    0,    0x67, 0x88, 3,    0x66, 0x81, 0xc3, 0,    0,
                                 0x10, 0,    0x66, 0x49, 0x75, 0xf2, 0xe6, 0x80, 0xeb, 0xe2};
#define LOGGED_SIZE (1ul << 30)

// Only the ioctl is measured, not the guest that writes between two of them.
static double dirty_log(long count) {
  struct vm v = boot(kWrite, sizeof(kWrite), 0, 0, &kStart);
  struct kvm_sregs sregs;
  need(ioctl(v.vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
  sregs.ds.base = AREA;
  sregs.ds.limit = ~0u;
  sregs.ds.g = 1;
  need(ioctl(v.vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
  v.area = allocate(LOGGED_SIZE);
  struct kvm_userspace_memory_region region = {.slot = 1,
                                               .flags = KVM_MEM_LOG_DIRTY_PAGES,
                                               .guest_phys_addr = AREA,
                                               .memory_size = LOGGED_SIZE,
                                               .userspace_addr = (uintptr_t)v.area.data};
  need(ioctl(v.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0, "memory region");
  struct kvm_userspace_memory_region other = region;
  other.slot = 2;
  other.guest_phys_addr = AREA + LOGGED_SIZE;
  other.memory_size = 4096;
  other.userspace_addr = (uintptr_t)allocate(4096).data;
  need(ioctl(v.vm, KVM_SET_USER_MEMORY_REGION, &other) == 0, "memory region");
  const size_t bytes = LOGGED_SIZE / 4096 / 8;
  uint8_t* bitmap = malloc(bytes);
  need(bitmap != NULL, "malloc");
  struct kvm_dirty_log log = {.slot = 1, .dirty_bitmap = bitmap}, first = {.slot = 2, .dirty_bitmap = bitmap};
  double elapsed = 0;
  for (long i = -1; i < count; i++) {
    need(ioctl(v.vcpu, KVM_RUN, 0) == 0 && v.run->exit_reason == KVM_EXIT_IO, "the guest");
    need(ioctl(v.vm, KVM_GET_DIRTY_LOG, &first) == 0, "KVM_GET_DIRTY_LOG");
    const double start = now();
    need(ioctl(v.vm, KVM_GET_DIRTY_LOG, &log) == 0, "KVM_GET_DIRTY_LOG");
    if (i >= 0) elapsed += now() - start;  // the first maps the pages
    if (bitmap[0] != 1 || bitmap[bytes - 32] != 1 || bitmap[1] != 0) exit(1);
  }
  free(bitmap);
  shut(&v);
  return elapsed / count;
}

#define HANDLER 0x1100
#define READY_PORT 0xf2
#define HANDLER_PORT 0xf1

// Programs the master PIC with vectors from 0x20 on and automatic ends of interrupt, says that it is ready,
// and waits.
static const uint8_t kWaits[] = {0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0,
                                 0x04, 0xe6, 0x21, 0xb0, 0x03, 0xe6, 0x21, 0xb0, 0x00,
                                 0xe6, 0x21, 0xe6, 0xf2, 0xfb, 0xf4, 0xeb, 0xfd};
static const uint8_t kHandler[] = {0xe6, 0xf1, 0xcf};  // out 0xf1, al; iret
#define LINE 4

static int exits_at(const struct vm* v, int port) {
  return ioctl(v->vcpu, KVM_RUN, 0) == 0 && v->run->exit_reason == KVM_EXIT_IO && v->run->io.port == port;
}

static double irqfd(long count) {
  struct kvm_regs regs = {.rip = CODE, .rflags = 2, .rsp = 0x8000};
  struct vm v = boot(kWaits, sizeof(kWaits), 0, 1, &regs);
  memcpy(v.ram.data + HANDLER, kHandler, sizeof(kHandler));
  const uint16_t vector[] = {HANDLER, 0};
  memcpy(v.ram.data + 4 * (0x20 + LINE), vector, sizeof(vector));
  struct kvm_irqfd irqfd = {.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .gsi = LINE};
  need(ioctl(v.vm, KVM_IRQFD, &irqfd) == 0, "KVM_IRQFD");
  need(exits_at(&v, READY_PORT), "ready");
  const uint64_t one = 1;
  const double start = now();
  for (long i = 0; i < count; i++) {
    need(write(irqfd.fd, &one, sizeof(one)) == sizeof(one), "write");
    need(exits_at(&v, HANDLER_PORT), "handler");
  }
  const double elapsed = now() - start;
  shut(&v);
  return elapsed / count;
}

// again: out 0xf2, al; out 0xf1, al; jmp again
static const uint8_t kRings[] = {0xe6, 0xf2, 0xe6, 0xf1, 0xeb, 0xfa};

static double ioeventfd(long count) {
  struct vm v = boot(kRings, sizeof(kRings), 0, 0, &kStart);
  struct kvm_ioeventfd door = {
      .addr = READY_PORT, .fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .flags = KVM_IOEVENTFD_FLAG_PIO};
  need(ioctl(v.vm, KVM_IOEVENTFD, &door) == 0, "KVM_IOEVENTFD");
  const int poll = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event = {.events = EPOLLIN};
  need(poll >= 0 && epoll_ctl(poll, EPOLL_CTL_ADD, door.fd, &event) == 0, "epoll");
  const double start = now();
  for (long i = 0; i < count; i++) {
    uint64_t rung = 0;
    need(exits_at(&v, HANDLER_PORT), "exit");
    need(epoll_wait(poll, &event, 1, -1) == 1, "epoll_wait");
    need(read(door.fd, &rung, sizeof(rung)) == sizeof(rung) && rung == 1, "read");
  }
  const double elapsed = now() - start;
  shut(&v);
  return elapsed / count;
}

int main(int argc, char** argv) {
  const long count = argc == 3 ? atol(argv[2]) : 0;
  const char* mode = argc == 3 ? argv[1] : "";
  double ns = -1;
  if (count > 0 && !strcmp(mode, "pio")) ns = pio(count, 0);
  if (count > 0 && !strcmp(mode, "immediate")) ns = pio(count, 1);
  if (count > 0 && !strcmp(mode, "open")) ns = first_exit(count);
  if (count > 0 && !strcmp(mode, "convert-4k")) ns = convert(count, 1);
  if (count > 0 && !strcmp(mode, "convert-2m")) ns = convert(count, 512);
  if (count > 0 && !strcmp(mode, "get-regs")) ns = registers(count, KVM_GET_REGS);
  if (count > 0 && !strcmp(mode, "set-regs")) ns = registers(count, KVM_SET_REGS);
  if (count > 0 && !strcmp(mode, "dirty-log")) ns = dirty_log(count);
  if (count > 0 && !strcmp(mode, "irqfd")) ns = irqfd(count);
  if (count > 0 && !strcmp(mode, "ioeventfd")) ns = ioeventfd(count);
  if (ns < 0) {
    fprintf(stderr,
            "usage: kvm_bench "
            "pio|immediate|open|convert-4k|convert-2m|get-regs|set-regs|dirty-log|irqfd|ioeventfd "
            "COUNT\n");
    return 2;
  }
  printf("%.1f\n", ns);
  return 0;
}
