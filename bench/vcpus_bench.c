// The C side of bench/vcpus.mjs: vCPUs on threads of their own, by the same system calls and nothing else.
//   vcpus_bench sync COUNT               nanoseconds per exit of a vCPU that the first thread runs
//   vcpus_bench threads VCPUS COUNT      of each of several, whose threads serve their own exits
//   vcpus_bench handoff VCPUS COUNT      of each of several, whose exits the first thread serves: an
//                                        eventfd and epoll_wait(2) there, a semaphore back
//   vcpus_bench pause spins|exits|handoff COUNT
//                                        nanoseconds of each pause, from tgkill(2) to the acknowledgement
//   vcpus_bench delay idle|spins|handoff MS
//                                        by how many nanoseconds each timer of a millisecond was late
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

#include "bench.h"

#define RAM_SIZE (1ul << 20)
#define CODE 0x1000
#define MOST_VCPUS 8
#define MILLISECOND 1000000

static const uint8_t kExits[] = {0xe6, 0x80, 0xeb, 0xfc};  // again: out 0x80, al; jmp again
static const uint8_t kSpins[] = {0xeb, 0xfe};              // again: jmp again

struct vcpu {
  int fd;
  struct kvm_run* run;
  pthread_t thread;
  atomic_int tid;
  long left;        // exits until it ends
  int told, acked;  // eventfds: an exit is to be served, a pause was seen
  sem_t served, resumed;
  atomic_int paused, stopped;
};

// Not of a function's: at the end of the program they may run.
static struct vcpu vcpus[MOST_VCPUS];
static int poller;
static volatile uint64_t sink;
static __thread struct kvm_run* current;

static void on_signal(int number) {
  (void)number;
  if (current) current->immediate_exit = 1;
}

static int event_fd(uint64_t data) {
  const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = data};
  need(fd >= 0 && epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) == 0, "eventfd");
  return fd;
}

static void boot(int count, const void* code, size_t code_size) {
  const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  need(kvm >= 0, "/dev/kvm");
  const int vm = ioctl(kvm, KVM_CREATE_VM, 0);
  need(vm >= 0, "KVM_CREATE_VM");
  const struct memory ram = allocate(RAM_SIZE);
  struct kvm_userspace_memory_region region = {.memory_size = RAM_SIZE,
                                               .userspace_addr = (uintptr_t)ram.data};
  need(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0, "memory region");
  memcpy(ram.data + CODE, code, code_size);
  need((poller = epoll_create1(EPOLL_CLOEXEC)) >= 0, "epoll");
  for (int i = 0; i < count; i++) {
    struct vcpu* v = vcpus + i;
    need((v->fd = ioctl(vm, KVM_CREATE_VCPU, i)) >= 0, "KVM_CREATE_VCPU");
    const long size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    v->run = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
    need(v->run != MAP_FAILED, "kvm_run");
    struct kvm_sregs sregs;
    need(ioctl(v->fd, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
    sregs.cs.base = sregs.cs.selector = 0;
    const struct kvm_regs regs = {.rip = CODE, .rflags = 2};
    need(ioctl(v->fd, KVM_SET_SREGS, &sregs) == 0 && ioctl(v->fd, KVM_SET_REGS, &regs) == 0, "registers");
    v->told = event_fd(2 * i);
    v->acked = event_fd(2 * i + 1);
    sem_init(&v->served, 0, 0);
    sem_init(&v->resumed, 0, 0);
  }
  struct sigaction action = {.sa_handler = on_signal};
  need(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");
}

static void serve(const struct vcpu* v) {
  const struct kvm_run* run = v->run;
  if (run->exit_reason != KVM_EXIT_IO || run->io.direction != KVM_EXIT_IO_OUT) exit(1);
  sink += run->io.port + run->io.size + run->io.count + *((const uint8_t*)run + run->io.data_offset);
}

static void signal_fd(int fd) {
  const uint64_t one = 1;
  need(write(fd, &one, sizeof(one)) == sizeof(one), "write");
}

static void drain(int fd) {
  uint64_t count;
  need(read(fd, &count, sizeof(count)) == sizeof(count), "read");
}

// KVM_RUN until an exit; a pause waits in here. 0 when it is to end.
static int enter(struct vcpu* v) {
  for (;;) {
    if (atomic_load(&v->paused) || atomic_load(&v->stopped)) v->run->immediate_exit = 1;
    if (ioctl(v->fd, KVM_RUN, 0) == 0) return 1;
    need(errno == EINTR, "KVM_RUN");
    v->run->immediate_exit = 0;
    if (atomic_load(&v->stopped)) return 0;
    if (atomic_load(&v->paused)) {
      signal_fd(v->acked);
      while (sem_wait(&v->resumed) != 0) {
      }
    }
  }
}

static void* serves_itself(void* self) {
  struct vcpu* v = self;
  current = v->run;
  atomic_store(&v->tid, gettid());
  while (v->left != 0 && enter(v)) {
    serve(v);
    v->left--;
  }
  return NULL;
}

static void* hands_over(void* self) {
  struct vcpu* v = self;
  current = v->run;
  atomic_store(&v->tid, gettid());
  while (enter(v)) {
    signal_fd(v->told);
    while (sem_wait(&v->served) != 0) {
    }
  }
  return NULL;
}

static void begin(int count, long exits, void* (*body)(void*)) {
  for (int i = 0; i < count; i++) {
    vcpus[i].left = exits;
    need(pthread_create(&vcpus[i].thread, NULL, body, vcpus + i) == 0, "pthread_create");
  }
}

// Serves what is ready: how many have ended, or -1 when an acknowledgement came.
static int turn(int timeout_ms) {
  struct epoll_event events[2 * MOST_VCPUS];
  const int ready = epoll_wait(poller, events, 2 * MOST_VCPUS, timeout_ms);
  int ended = 0, acked = 0;
  for (int i = 0; i < ready; i++) {
    struct vcpu* v = vcpus + events[i].data.u64 / 2;
    if (events[i].data.u64 % 2) {
      drain(v->acked);
      acked = 1;
      continue;
    }
    drain(v->told);
    serve(v);
    if (v->left > 0 && --v->left == 0) {
      ended++;
      continue;
    }
    sem_post(&v->served);
  }
  return acked ? -1 : ended;
}

static double synchronous(long count) {
  boot(1, kExits, sizeof(kExits));
  const double start = now();
  for (long i = 0; i < count; i++) {
    if (ioctl(vcpus->fd, KVM_RUN, 0) != 0) exit(1);
    serve(vcpus);
  }
  return (now() - start) / count;
}

static double threads(int number, long count) {
  boot(number, kExits, sizeof(kExits));
  const double start = now();
  begin(number, count, serves_itself);
  for (int i = 0; i < number; i++) pthread_join(vcpus[i].thread, NULL);
  return (now() - start) / count;
}

static double handoff(int number, long count) {
  boot(number, kExits, sizeof(kExits));
  const double start = now();
  begin(number, count, hands_over);
  for (int left = number; left > 0;) left -= turn(-1);
  return (now() - start) / count;
}

static void pauses(int spins, int hands, long count) {
  if (spins)
    boot(1, kSpins, sizeof(kSpins));
  else
    boot(1, kExits, sizeof(kExits));
  double* elapsed = calloc(count, sizeof(double));
  need(elapsed != NULL, "calloc");
  begin(1, -1, hands ? hands_over : serves_itself);
  for (long i = 0; i < count; i++) {
    for (double until = now() + MILLISECOND; now() < until;) turn(1);
    const double start = now();
    atomic_store(&vcpus->paused, 1);
    tgkill(getpid(), atomic_load(&vcpus->tid), SIGUSR1);
    while (turn(-1) >= 0) {
    }
    elapsed[i] = now() - start;
    atomic_store(&vcpus->paused, 0);
    sem_post(&vcpus->resumed);
  }
  for (long i = 0; i < count; i++) printf("%.0f\n", elapsed[i]);
}

static void delays(const char* mode, double milliseconds) {
  if (!strcmp(mode, "handoff"))
    boot(1, kExits, sizeof(kExits));
  else
    boot(1, kSpins, sizeof(kSpins));
  if (strcmp(mode, "idle")) begin(1, -1, hands_over);
  const long most = milliseconds + 1;
  double* late = calloc(most, sizeof(double));
  need(late != NULL, "calloc");
  const int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = 2 * MOST_VCPUS};
  need(timer >= 0 && epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event) == 0, "timerfd");
  long fired = 0;
  const struct itimerspec once = {.it_value = {.tv_nsec = MILLISECOND}};
  timerfd_settime(timer, 0, &once, NULL);
  double due = now() + MILLISECOND;
  const double end = now() + milliseconds * MILLISECOND;
  while (now() < end) {
    struct epoll_event events[2];
    const int ready = epoll_wait(poller, events, 2, -1);
    for (int i = 0; i < ready; i++) {
      if (events[i].data.u64 == 0) {
        drain(vcpus->told);
        serve(vcpus);
        sem_post(&vcpus->served);
        continue;
      }
      if (fired < most) late[fired++] = now() - due;
      timerfd_settime(timer, 0, &once, NULL);
      due = now() + MILLISECOND;
    }
  }
  for (long i = 0; i < fired; i++) printf("%.0f\n", late[i]);
}

static int is(const char* text, const char* wanted) { return !strcmp(text, wanted); }

int main(int argc, char** argv) {
  const char* what = argc > 1 ? argv[1] : "";
  const char* mode = argc > 2 ? argv[2] : "";
  const long count = argc > 2 ? atol(argv[argc - 1]) : 0;
  const int number = argc == 4 ? atoi(mode) : 0;
  const int several = number > 0 && number <= MOST_VCPUS;
  if (count > 0 && argc == 3 && is(what, "sync")) {
    printf("%.1f\n", synchronous(count));
  } else if (count > 0 && several && is(what, "threads")) {
    printf("%.1f\n", threads(number, count));
  } else if (count > 0 && several && is(what, "handoff")) {
    printf("%.1f\n", handoff(number, count));
  } else if (count > 0 && is(what, "pause") &&
             (is(mode, "spins") || is(mode, "exits") || is(mode, "handoff"))) {
    pauses(is(mode, "spins"), is(mode, "handoff"), count);
  } else if (count > 0 && is(what, "delay") &&
             (is(mode, "idle") || is(mode, "spins") || is(mode, "handoff"))) {
    delays(mode, count);
  } else {
    fprintf(
        stderr,
        "usage: vcpus_bench sync COUNT | threads|handoff VCPUS COUNT | pause spins|exits|handoff COUNT |\n"
        "       delay idle|spins|handoff MILLISECONDS\n");
    return 2;
  }
  fflush(stdout);
  _exit(0);  // its vCPUs may run
}
