#pragma once
#include <string>

#include "formats/formats.h"

namespace ivlite {

Format format_named(const std::string& name);  // throws std::invalid_argument

}  // namespace ivlite
