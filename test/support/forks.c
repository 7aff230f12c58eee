// Forks without exec, as some libraries do (LD_PRELOAD): kill() of the process kForks is fork(). The child has the vCPUs'
// descriptors and memory and none of their threads; it tries each descriptor and ends by _exit(), for exit() hangs in a child
// of Node's whatever has been loaded. kill() fails with the number of descriptors that served it, or EINTR.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

enum { kForks = 0x7ffffffe, kKvmRun = 0xae80, kCheckExtension = 0xae03, kSeconds = 20 };

// KVM's descriptors are of the process that has made them: in another one each ioctl of a VM or a vCPU is EIO.
static int Served(void) {
  int served = 0;
  DIR* files = opendir("/proc/self/fd");
  for (struct dirent* file; (file = readdir(files));) {
    char target[256] = {0};
    if (readlinkat(dirfd(files), file->d_name, target, sizeof(target) - 1) < 0) continue;
    if (!strstr(target, "kvm-vm") && !strstr(target, "kvm-vcpu")) continue;
    const unsigned long request = strstr(target, "kvm-vm") ? kCheckExtension : kKvmRun;
    if (ioctl(atoi(file->d_name), request, 0) >= 0 || errno != EIO) served++;
  }
  closedir(files);
  return served;
}

int kill(pid_t pid, int signal) {
  int (*real)(pid_t, int) = dlsym(RTLD_NEXT, "kill");
  if (pid != kForks) return real(pid, signal);
  const pid_t child = fork();
  if (child == 0) {
    alarm(kSeconds);
    _exit(Served());
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  errno = WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
  return errno ? -1 : 0;
}
