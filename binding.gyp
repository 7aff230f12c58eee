{
  "targets": [
    {
      "target_name": "vmexit",
      "sources": [
        "native/addon.cc",
        "native/eventfd.cc",
        "native/handle.cc",
        "native/handover.cc",
        "native/ioctls.cc",
        "native/look.cc",
        "native/memory.cc",
        "native/references.cc",
        "native/run.cc",
        "native/share.cc",
        "native/stats.cc",
        "native/syscalls.cc",
        "native/table.cc",
        "native/thread.cc",
        "native/userfaultfd.cc",
        "native/vcpu.cc",
        "native/watch.cc"
      ],
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": [
        "NAPI_VERSION=9",
        "NAPI_DISABLE_CPP_EXCEPTIONS",
        "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS",
        "NODE_ADDON_API_DISABLE_DEPRECATED"
      ],
      "cflags": ["-Wall", "-Wextra", "-fvisibility=hidden"],
      # With run-time type information make_shared needs nothing newer than GCC 8's libstdc++.
      "cflags_cc": ["-std=c++20", "-frtti"],
      "cflags_cc!": ["-fno-rtti"],
      # They make open64 of open: the same function on x86-64, and a name that musl has not.
      "defines!": ["_FILE_OFFSET_BITS=64", "_LARGEFILE_SOURCE"],
      "cflags!": ["-Wno-unused-parameter"],
      # A worker that ends closes its addons; the handler of the signal in native/run.cc must stay.
      "ldflags": ["-Wl,-z,nodelete"]
    }
  ]
}
