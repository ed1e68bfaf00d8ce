#include "kernels/dispatch.h"

#include <stdlib.h>

#include <stdexcept>

#include "kernels/cpu_info.h"

namespace ivlite {
namespace {

struct Row {
  const char* name;
  bool (*supported)();
  void (*init)(KernelTable&);
};

bool always() { return true; }
void nothing(KernelTable&) {}
#if defined(__x86_64__)
bool has_avx2() { return cpu_info().avx2 && cpu_info().fma && cpu_info().f16c; }
bool has_avxvnni() { return has_avx2() && cpu_info().avxvnni; }
bool has_avx512vnni() {
#ifdef IVLITE_EMULATE_AVX512
  return has_avx2();  // a test build: the intrinsics are functions
#else
  const CpuInfo& c = cpu_info();
  return has_avx2() && c.avx512f && c.avx512bw && c.avx512dq && c.avx512vl && c.avx512vnni;
#endif
}
#ifndef IVLITE_EMULATE_AVX512
bool has_amx() { return has_avx512vnni() && cpu_info().amx; }
#endif
#elif defined(__aarch64__)
bool has_neon() { return cpu_info().dotprod && cpu_info().fp16; }
bool has_i8mm() { return has_neon() && cpu_info().i8mm; }
#endif

// Weak to strong; a row that the machine lacks is skipped.
const Row ROWS[] = {
    {"ref", always, nothing},
#if defined(__x86_64__)
    {"avx2", has_avx2, init_avx2}, {"avxvnni", has_avxvnni, init_avxvnni}, {"avx512vnni", has_avx512vnni, init_avx512vnni},
#ifndef IVLITE_EMULATE_AVX512
    {"amx", has_amx, init_amx},
#endif
#elif defined(__aarch64__)
    {"neon", has_neon, init_neon},
    {"i8mm", has_i8mm, init_i8mm},
#endif
};

const Row& find(const std::string& name) {
  for (const Row& row : ROWS)
    if (name == row.name) {
      if (!row.supported()) throw std::invalid_argument("this processor lacks the instruction set '" + name + "'");
      return row;
    }
  std::string all;
  for (const Row& row : ROWS) all += std::string(all.empty() ? "" : ", ") + row.name;
  throw std::invalid_argument("unknown instruction set '" + name + "'; there are " + all);
}

struct Choice {
  std::string name;
  KernelTable table;
};

Choice choose() {
  std::string name;
#ifdef IVLITE_EMULATE_AVX512
  name = "avx2";  // emulation is for tests that ask for it
#else
  for (const Row& row : ROWS)
    if (row.supported()) name = row.name;
#endif
  const char* forced = getenv("IVLITE_ISA");
  if (!forced || !*forced) return {name, isa_table(name)};  // an empty variable is an unset one
  try {
    return {forced, isa_table(forced)};
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(std::string("IVLITE_ISA cannot be obeyed: ") + error.what());
  }
}

Choice& current() {
  static Choice choice = choose();
  return choice;
}

}  // namespace

KernelTable isa_table(const std::string& name) {
  KernelTable table{};
  init_ref(table);
  find(name).init(table);
  return table;
}

const KernelTable& kernels() { return current().table; }
const char* isa_name() { return current().name.c_str(); }
void use_isa(const std::string& name) { current() = {name, isa_table(name)}; }

std::vector<std::string> known_isas() {
  std::vector<std::string> names;
  for (const Row& row : ROWS) names.push_back(row.name);
  return names;
}

bool isa_supported(const std::string& name) {
  for (const Row& row : ROWS)
    if (name == row.name) return row.supported();
  return false;
}

}  // namespace ivlite
