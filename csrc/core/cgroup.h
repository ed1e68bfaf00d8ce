// What the control groups of this process grant it.
#pragma once
#include <string>

namespace ivlite {

// Processors that the control groups of this process, its own and those above it, are paid for; infinity without a limit.
// `listing` names them as /proc/self/cgroup does, and they are directories under `mount`, version 1 or 2.
double cpu_quota(const std::string& listing = "/proc/self/cgroup", const std::string& mount = "/sys/fs/cgroup");

// The first line of a file, or nothing.
std::string first_line(const std::string& path);

}  // namespace ivlite
