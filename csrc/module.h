// An empty Python module in the limited API: importing it runs the registrations of its file.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifndef PIXELREFER_FAST_SOURCES
#error "PIXELREFER_FAST_SOURCES is the digest of csrc/; pixelrefer_fast/ops/extension/build.py defines it"
#endif

// Read from the file before it is loaded: a build from other sources may have other signatures.
#define PIXELREFER_FAST_MARKER "pixelrefer_fast csrc " PIXELREFER_FAST_SOURCES

#define PIXELREFER_FAST_MODULE(name)                                                                \
  extern "C" PyMODINIT_FUNC PyInit_##name(void) {                                                   \
    static struct PyModuleDef definition = {                                                        \
        PyModuleDef_HEAD_INIT, #name, PIXELREFER_FAST_MARKER, -1, nullptr, nullptr, nullptr, nullptr, nullptr}; \
    return PyModule_Create(&definition);                                                            \
  }
