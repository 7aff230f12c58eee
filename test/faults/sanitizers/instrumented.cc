// What only builds with a sanitizer have, around the addon as it is: a count of the calls of each of its
// functions, and bugs to be found. The names of three functions of Node-API are macros while the addon is
// compiled, so that it comes by here: napi_create_function, napi_get_cb_info and napi_register_module_v1.
#undef napi_create_function
#undef napi_get_cb_info
#undef napi_register_module_v1

#include <fcntl.h>
#include <node_api.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>

namespace {

// A file of the process's own in the folder VMEXIT_CALLS, mapped: it stays whatever ends the process.
struct Row {
  char name[24];
  std::atomic<uint64_t> count;
};
constexpr size_t kRows = 128;

Row* Rows() {
  static Row* const rows = [] {
    const char* folder = getenv("VMEXIT_CALLS");
    void* data = MAP_FAILED;
    if (folder) {
      const std::string path = std::string(folder) + "/" + std::to_string(getpid());
      const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
      if (ftruncate(fd, kRows * sizeof(Row)) == 0)
        data = mmap(nullptr, kRows * sizeof(Row), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      close(fd);
    }
    return data == MAP_FAILED ? new Row[kRows]() : static_cast<Row*>(data);
  }();
  return rows;
}

Row* RowOf(const char* name) {
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  Row* row = Rows();
  while (row[0].name[0] && strncmp(row->name, name, sizeof row->name - 1) != 0) row++;
  strncpy(row->name, name, sizeof row->name - 1);
  return row;
}

struct Counted {
  napi_callback call;
  void* data;
  Row* row;
};

napi_value Count(napi_env env, napi_callback_info info) {
  void* data = nullptr;
  napi_get_cb_info(env, info, nullptr, nullptr, nullptr, &data);
  auto* counted = static_cast<Counted*>(data);
  counted->row->count.fetch_add(1, std::memory_order_relaxed);
  return counted->call(env, info);
}

// planted("overflow" | "undefined" | "race")
napi_value Planted(napi_env env, napi_callback_info info) {
  size_t argc = 1;
  napi_value arg = nullptr;
  char kind[16] = "";
  napi_get_cb_info(env, info, &argc, &arg, nullptr, nullptr);
  napi_get_value_string_utf8(env, arg, kind, sizeof kind, nullptr);
  static int shared = 0;
  if (strcmp(kind, "overflow") == 0) {
    // Of a size that only runs tell: the sanitizer of addresses has to find it.
    volatile char* bytes = new char[strlen(kind) + 8];
    bytes[strlen(kind) + 8] = 1;
    delete[] bytes;
  } else if (strcmp(kind, "undefined") == 0) {
    shared = INT_MAX;
    shared++;
  } else if (strcmp(kind, "race") == 0) {
    std::thread other([] { shared++; });
    shared++;
    other.join();
  }
  return nullptr;
}

}  // namespace

extern "C" {

// libubsan.so beside a preloaded libasan.so tells stderr alone: log_path comes to the other's copy of their
// common code.
__attribute__((weak)) void __ubsan_get_current_report_data(const char** kind, const char** message,
                                                           const char** file, unsigned* line,
                                                           unsigned* column, char** address);
NAPI_MODULE_EXPORT void __ubsan_on_report() {
  const char* folder = getenv("VMEXIT_REPORTS");
  if (!folder || !__ubsan_get_current_report_data) return;
  const char *kind = "", *message = "", *file = "";
  unsigned line = 0, column = 0;
  char* address = nullptr;
  __ubsan_get_current_report_data(&kind, &message, &file, &line, &column, &address);
  const std::string path = std::string(folder) + "/undefined." + std::to_string(getpid());
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  dprintf(fd, "%s:%u: %s: %s\n", file, line, kind, message);
  close(fd);
}

napi_status instrumented_create_function(napi_env env, const char* name, size_t length, napi_callback call,
                                         void* data, napi_value* result) {
  // Kept for as long as the process lives: as many as there are vCPUs and prepared ioctls.
  auto* counted = new Counted{call, data, RowOf(name)};
  return napi_create_function(env, name, length, Count, counted, result);
}

napi_status instrumented_get_cb_info(napi_env env, napi_callback_info info, size_t* argc, napi_value* argv,
                                     napi_value* self, void** data) {
  void* counted = nullptr;
  const napi_status status = napi_get_cb_info(env, info, argc, argv, self, &counted);
  if (data && counted) *data = static_cast<Counted*>(counted)->data;
  return status;
}

napi_value instrumented_register_module(napi_env env, napi_value exports);

NAPI_MODULE_EXPORT napi_value napi_register_module_v1(napi_env env, napi_value exports) {
  napi_value made = instrumented_register_module(env, exports);
  // Not enumerable, lest hostile calls find it.
  const napi_property_descriptor planted = {"planted", nullptr, Planted,      nullptr,
                                            nullptr,   nullptr, napi_default, nullptr};
  napi_define_properties(env, made, 1, &planted);
  return made;
}

}  // extern "C"
