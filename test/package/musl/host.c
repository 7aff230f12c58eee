// A host for the addon on musl, where there is no Node for it: as much of Node-API as it takes to load the
// addon, to have memory made and, with a second argument, to run a guest that spins until its deadline.
// musl.test.ts adds a function that fails for each name that the addon needs and that is not here.
#include <dlfcn.h>
#include <errno.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum Type { kUndefined, kNull, kBoolean, kNumber, kString, kSymbol, kObject, kFunction, kExternal };

typedef struct Value Value;
typedef struct {
  size_t argc;
  Value** argv;
  void* data;
} Call;
typedef Value* (*Callback)(void* env, Call* call);

struct Value {
  enum Type type;
  double number;
  const void* data;  // a string's, a Uint8Array's or an external's
  size_t size;       // of a Uint8Array
  Value* items[2];   // an array's only element; a place's memory and offset
  bool is_array;
  Callback call;
};

static struct {
  char name[32];
  Value* value;
} exports[64];
static int exported;

static Value* make(enum Type type) {
  Value* value = calloc(1, sizeof(Value));
  value->type = type;
  return value;
}

#define MAKE(name, type)                \
  int name(void* env, Value** result) { \
    (void)env;                          \
    *result = make(type);               \
    return 0;                           \
  }
MAKE(napi_get_undefined, kUndefined)
MAKE(napi_create_object, kObject)

#define NUMBER(name, C)                           \
  int name(void* env, C number, Value** result) { \
    (void)env;                                    \
    *result = make(kNumber);                      \
    (*result)->number = (double)number;           \
    return 0;                                     \
  }
NUMBER(napi_create_double, double)
NUMBER(napi_create_int32, int32_t)
NUMBER(napi_create_uint32, uint32_t)

int napi_typeof(void* env, Value* value, int* type) {
  (void)env;
  *type = value ? value->type : kUndefined;
  return 0;
}

int napi_get_value_double(void* env, Value* value, double* number) {
  (void)env;
  *number = value->number;
  return value->type != kNumber;
}

int napi_get_value_string_utf8(void* env, Value* value, char* into, size_t size, size_t* length) {
  (void)env;
  *length = strlen(value->data);
  snprintf(into, size, "%s", (const char*)value->data);
  return value->type != kString;
}

int napi_create_external(void* env, void* data, void* finalize, void* hint, Value** result) {
  (void)env, (void)finalize, (void)hint;
  *result = make(kExternal);
  (*result)->data = data;
  return 0;
}

int napi_get_value_external(void* env, Value* value, const void** data) {
  (void)env;
  *data = value->data;
  return value->type != kExternal;
}

int napi_type_tag_object(void* env, Value* value, const void* tag) {
  (void)env, (void)value, (void)tag;
  return 0;
}

int napi_check_object_type_tag(void* env, Value* value, const void* tag, bool* result) {
  (void)env, (void)tag;
  *result = value->type == kExternal;
  return 0;
}

int napi_is_typedarray(void* env, Value* value, bool* result) {
  (void)env;
  *result = value->size > 0;
  return 0;
}

int napi_is_arraybuffer(void* env, Value* value, bool* result) {
  return napi_is_typedarray(env, value, result);
}

int napi_get_typedarray_info(void* env, Value* value, int* type, size_t* length, const void** data,
                             Value** buffer, size_t* offset) {
  (void)env;
  if (type) *type = 1;  // napi_uint8_array
  if (length) *length = value->size;
  if (data) *data = value->data;
  if (buffer) *buffer = value;
  if (offset) *offset = 0;
  return 0;
}

int napi_is_array(void* env, Value* value, bool* result) {
  (void)env;
  *result = value->is_array;
  return 0;
}

int napi_get_array_length(void* env, Value* value, uint32_t* length) {
  (void)env, (void)value;
  *length = 1;
  return 0;
}

int napi_get_element(void* env, Value* value, uint32_t index, Value** result) {
  (void)env;
  *result = value->items[index];
  return 0;
}

int napi_get_named_property(void* env, Value* value, const char* name, Value** result) {
  (void)env;
  *result = value->items[!strcmp(name, "memory") ? 0 : 1];
  return 0;
}

int napi_create_function(void* env, const char* name, size_t length, Callback call, void* data,
                         Value** result) {
  (void)env, (void)name, (void)length;
  *result = make(kFunction);
  (*result)->call = call;
  (*result)->data = data;
  return 0;
}

int napi_add_finalizer(void* env, Value* object, void* data, void* finalize, void* hint, void** result) {
  (void)env, (void)object, (void)data, (void)finalize, (void)hint, (void)result;
  return 0;
}

int napi_get_cb_info(void* env, Call* call, size_t* argc, Value** argv, Value** self, void** data) {
  (void)env;
  for (size_t i = 0; argc && argv && i < *argc; i++)
    argv[i] = i < call->argc ? call->argv[i] : make(kUndefined);
  if (argc) *argc = call->argc;
  if (self) *self = make(kUndefined);
  if (data) *data = call->data;
  return 0;
}

int napi_set_named_property(void* env, Value* object, const char* name, Value* value) {
  (void)env, (void)object;
  snprintf(exports[exported].name, sizeof exports[exported].name, "%s", name);
  exports[exported++].value = value;
  return 0;
}

int napi_is_exception_pending(void* env, bool* result) {
  (void)env;
  *result = false;
  return 0;
}

int napi_throw_type_error(void* env, const char* code, const char* message) {
  (void)env;
  fprintf(stderr, "%s: %s\n", code, message);
  exit(1);
}

static Value* invoke(Value* function, size_t argc, Value** argv) {
  Call call = {argc, argv, (void*)function->data};
  return function->call(NULL, &call);
}

static Value* number(double of) {
  Value* value = make(kNumber);
  value->number = of;
  return value;
}

static Value* bytes(const void* data, size_t size) {
  Value* value = make(kObject);
  value->data = data;
  value->size = size;
  return value;
}

static Value* call(const char* name, size_t argc, Value** argv) {
  for (int i = 0; i < exported; i++) {
    if (strcmp(exports[i].name, name)) continue;
    Value* result = invoke(exports[i].value, argc, argv);
    if (result->type == kNumber && result->number < 0) {
      fprintf(stderr, "%s: %s\n", name, strerror((int)-result->number));
      exit(1);
    }
    return result;
  }
  fprintf(stderr, "there is no function %s\n", name);
  exit(1);
}
#define CALL(name, ...) call(name, sizeof((Value*[]){__VA_ARGS__}) / sizeof(Value*), (Value*[]){__VA_ARGS__})

// What a struct refers to: memory, from its beginning.
static Value* references(Value* memory) {
  Value* place = make(kObject);
  place->items[0] = memory;
  place->items[1] = number(0);
  Value* array = make(kObject);
  array->is_array = true;
  array->items[0] = place;
  return array;
}

// What run(20) gives of a guest that spins at the reset vector.
static double spin(void) {
  Value* path = make(kString);
  path->data = "/dev/kvm";
  Value* memory = CALL("allocate", number(0x10000));
  CALL("write", memory, number(0xfff0), bytes("\xeb\xfe", 2));
  Value* vm = CALL("create", CALL("open", path), number(KVM_CREATE_VM), number(0));
  struct kvm_userspace_memory_region region = {.guest_phys_addr = 0xffff0000, .memory_size = 0x10000};
  CALL("ioctl", vm, number(KVM_SET_USER_MEMORY_REGION), bytes(&region, sizeof region), references(memory));
  Value* vcpu = CALL("create", vm, number(KVM_CREATE_VCPU), number(0));
  Value* timeout = number(20);
  return invoke(CALL("runner", vcpu), 1, &timeout)->number;
}

int main(int argc, char** argv) {
  void* addon = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (!addon) return fprintf(stderr, "%s\n", dlerror()), 1;
  Value* (*init)(void*, Value*) = (Value * (*)(void*, Value*)) dlsym(addon, "napi_register_module_v1");
  if (!init) return fprintf(stderr, "%s\n", dlerror()), 1;
  init(NULL, make(kObject));

  Value* memory = CALL("allocate", number(4096));
  struct stat stat;
  const bool found = fstat((int)CALL("fd", memory)->number, &stat) == 0;
  const bool same = found && CALL("inode", memory)->number == (double)stat.st_ino;
  printf("functions %d, inode %s", exported, same ? "right" : "wrong");
  if (argc > 2) printf(", run %s", spin() == -ETIME ? "ended by its deadline" : "ended otherwise");
  printf("\n");
  return 0;
}
