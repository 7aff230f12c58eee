{
  "targets": [
    {
      "target_name": "vmexit",
      "sources": [
        "native/addon.cc",
        "native/handle.cc",
        "native/ioctls.cc",
        "native/memory.cc",
        "native/run.cc",
        "native/userfaultfd.cc"
      ],
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": [
        "NAPI_VERSION=9",
        "NAPI_DISABLE_CPP_EXCEPTIONS",
        "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS",
        "NODE_ADDON_API_DISABLE_DEPRECATED"
      ],
      "cflags": ["-Wall", "-Wextra", "-fvisibility=hidden"],
      "cflags_cc": ["-std=c++20"],
      "cflags!": ["-Wno-unused-parameter"],
      # A worker that ends closes its addons; the handler of the signal in native/run.cc must stay.
      "ldflags": ["-Wl,-z,nodelete"],
      "libraries": ["-lrt"]
    }
  ]
}
