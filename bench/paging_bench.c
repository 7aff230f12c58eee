// The C side of the paging benchmarks: one vCPU reads a word of each of COUNT pages of 4 KiB, which come from
// a buffer as it touches them, BATCH neighbours at a time. Prints nanoseconds per page.
//   paging_bench userfault COUNT BATCH    an exit for each fault (KVM_MEM_USERFAULT), served in the same
//   thread paging_bench userfaultfd COUNT BATCH  the vCPU waits in the kernel; another thread polls, reads,
//   copies
#define _GNU_SOURCE
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/syscall.h>

#include "bench.h"

#define KVM_MEM_USERFAULT (1u << 3)
#define KVM_MEMORY_EXIT_FLAG_USERFAULT (1u << 4)

#define PAGE 4096ul
#define RAM_SIZE (1ul << 20)
#define CODE 0x1000
#define TABLES 0x10000
#define AREA (1ul << 30)
#define WARM_UP 64

// again: add rax, [rdi]; add rdi, 0x1000; cmp rdi, rsi; jne again; out 0xf4, eax
static const uint8_t kTouch[] = {0x48, 0x03, 0x07, 0x48, 0x81, 0xc7, 0x00, 0x10, 0x00,
                                 0x00, 0x48, 0x39, 0xf7, 0x75, 0xf1, 0xe7, 0xf4};

static int vm, vcpu, uffd;
static struct kvm_run* run;
static struct memory ram, area;
static uint8_t* source;
static uint64_t pages, batch;
static uint64_t* bitmap;

// The pages from `page` on, as many as a batch has, in the kernel's own copy: it catches the kernel's own
// accesses beside KVM_MEM_USERFAULT, too.
static void bring(uint64_t page) {
  const uint64_t count = page + batch > pages ? pages - page : batch;
  struct uffdio_copy copy = {
      .dst = (uintptr_t)area.data + page * PAGE, .src = (uintptr_t)source + page * PAGE, .len = count * PAGE};
  need(ioctl(uffd, UFFDIO_COPY, &copy) == 0, "UFFDIO_COPY");
  if (!bitmap) return;
  for (uint64_t i = page; i < page + count; i++) {
    __atomic_fetch_and((uint32_t*)bitmap + i / 32, ~(1u << i % 32), __ATOMIC_RELEASE);
  }
}

static void* serve(void* unused) {
  (void)unused;
  struct uffd_msg messages[64];
  for (;;) {
    struct pollfd readable = {.fd = uffd, .events = POLLIN};
    poll(&readable, 1, -1);
    const ssize_t size = read(uffd, messages, sizeof(messages));
    for (ssize_t i = 0; i < size / (ssize_t)sizeof(*messages); i++) {
      bring((messages[i].arg.pagefault.address - (uintptr_t)area.data) / PAGE);
    }
  }
  return NULL;
}

static void watch(void) {
  uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};
  need(uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0, "userfaultfd");
  struct uffdio_register range = {.range = {(uintptr_t)area.data, pages * PAGE},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
  need(ioctl(uffd, UFFDIO_REGISTER, &range) == 0, "UFFDIO_REGISTER");
}

// 64-bit mode at privilege 3, where every host's KVM runs code on the processor.
static void enter_user_mode(void) {
  uint64_t* const tables = (uint64_t*)(ram.data + TABLES);
  tables[0] = (TABLES + 0x1000) | 7;
  for (uint64_t gib = 0; gib < 4; gib++) {
    tables[512 + gib] = (TABLES + 0x2000 + gib * 0x1000) | 7;
    for (uint64_t i = 0; i < 512; i++) tables[1024 + gib * 512 + i] = gib << 30 | i << 21 | 0x87;
  }
  struct kvm_sregs sregs;
  need(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
  struct kvm_segment code = {
      .limit = 0xffffffff, .selector = 0x1b, .type = 11, .present = 1, .dpl = 3, .s = 1, .l = 1, .g = 1};
  struct kvm_segment data = code;
  data.selector = 0x23;
  data.type = 3;
  data.l = 0;
  data.db = 1;
  sregs.cs = code;
  sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = data;
  sregs.cr0 = 0x80000033;  // PG, NE, ET, MP, PE
  sregs.cr3 = TABLES;
  sregs.cr4 = 0x20;    // PAE
  sregs.efer = 0x500;  // LME, LMA
  need(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
}

static void boot(void) {
  const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  need(kvm >= 0, "/dev/kvm");
  need((vm = ioctl(kvm, KVM_CREATE_VM, 0)) >= 0, "KVM_CREATE_VM");
  ram = allocate(RAM_SIZE);
  struct kvm_userspace_memory_region region = {.memory_size = RAM_SIZE,
                                               .userspace_addr = (uintptr_t)ram.data};
  need(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0, "memory region");
  memcpy(ram.data + CODE, kTouch, sizeof(kTouch));
  need((vcpu = ioctl(vm, KVM_CREATE_VCPU, 0)) >= 0, "KVM_CREATE_VCPU");
  run = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  need(run != MAP_FAILED, "kvm_run");
  struct kvm_cpuid2* cpuid = calloc(1, sizeof(*cpuid) + 256 * sizeof(struct kvm_cpuid_entry2));
  cpuid->nent = 256;
  need(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) == 0, "KVM_GET_SUPPORTED_CPUID");
  need(ioctl(vcpu, KVM_SET_CPUID2, cpuid) == 0, "KVM_SET_CPUID2");
  enter_user_mode();
}

static void arm(int userfault) {
  source = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  need(source != MAP_FAILED, "source");
  for (uint64_t i = 0; i < pages; i++) *(uint64_t*)(source + i * PAGE) = i + 1;
  area = allocate(pages * PAGE);
  watch();
  struct kvm_userspace_memory_region2 region = {.slot = 1,
                                                .guest_phys_addr = AREA,
                                                .memory_size = pages * PAGE,
                                                .userspace_addr = (uintptr_t)area.data};
  if (userfault) {
    bitmap = aligned_alloc(PAGE, (pages / 8 + PAGE) & ~(PAGE - 1));
    memset(bitmap, 0xff, pages / 8 + 1);
    region.flags = KVM_MEM_USERFAULT;
    ((uint64_t*)&region)[kUserfaultBitmapOffset / 8] = (uintptr_t)bitmap;
  }
  need(ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region) == 0, "region2");
}

static void touch(uint64_t first, uint64_t end) {
  struct kvm_regs regs = {
      .rip = CODE, .rflags = 0x3002, .rdi = AREA + first * PAGE, .rsi = AREA + end * PAGE};
  need(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
  for (;;) {
    const int result = ioctl(vcpu, KVM_RUN, 0);
    if (result == 0 && run->exit_reason == KVM_EXIT_IO) break;
    const uint64_t* fault = (const uint64_t*)&run->hw;  // memory_fault: flags, gpa, size
    need(result && errno == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT, "KVM_RUN");
    if (!(fault[0] & KVM_MEMORY_EXIT_FLAG_USERFAULT)) exit(1);
    bring((fault[1] - AREA) / PAGE);
  }
  uint64_t sum = 0;
  for (uint64_t i = first; i < end; i++) sum += i + 1;
  if (*(uint32_t*)((uint8_t*)run + run->io.data_offset) == (uint32_t)sum) return;
  fprintf(stderr, "bench: the guest has read something else\n");
  exit(1);
}

int main(int argc, char** argv) {
  const int userfault = argc == 4 && !strcmp(argv[1], "userfault");
  const long count = argc == 4 && (userfault || !strcmp(argv[1], "userfaultfd")) ? atol(argv[2]) : 0;
  batch = count > 0 ? strtoul(argv[3], NULL, 10) : 0;
  if (batch == 0) {
    fprintf(stderr, "usage: paging_bench userfault|userfaultfd COUNT BATCH\n");
    return 2;
  }
  pages = count + WARM_UP;
  boot();
  arm(userfault);
  pthread_t server;
  if (!userfault) need(pthread_create(&server, NULL, serve, NULL) == 0, "pthread_create");
  touch(0, WARM_UP);
  const double start = now();
  touch(WARM_UP, pages);
  printf("%.1f\n", (now() - start) / count);
  return 0;
}
