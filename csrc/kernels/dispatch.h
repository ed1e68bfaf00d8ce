// Which instruction set's kernels are in use.
#pragma once
#include <string>
#include <vector>

#include "kernels/table.h"

namespace ivlite {

// The table in use: the strongest instruction set of this machine, or the one that IVLITE_ISA names.
// Throws std::invalid_argument when IVLITE_ISA is unknown or this machine lacks it.
const KernelTable& kernels();
const char* isa_name();

std::vector<std::string> known_isas();           // weak to strong, "ref" first
bool isa_supported(const std::string& name);     // by this machine
KernelTable isa_table(const std::string& name);  // ref overridden by that set alone; throws as kernels() does
void use_isa(const std::string& name);           // for tests and benchmarks

}  // namespace ivlite
