#include "core/cgroup.h"

#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <fstream>

namespace ivlite {

std::string first_line(const std::string& path) {
  char line[256] = "";
  if (FILE* f = fopen(path.c_str(), "r")) {
    if (!fgets(line, sizeof line, f)) line[0] = 0;
    fclose(f);
  }
  return line;
}

namespace {

// Processors that the group in this directory is paid for, or infinity.
double group_quota(const std::string& group) {
  double quota = -1, period = -1;
  const std::string both = first_line(group + "/cpu.max");
  if (both.empty()) {  // version 1
    quota = atof(first_line(group + "/cpu.cfs_quota_us").c_str());
    period = atof(first_line(group + "/cpu.cfs_period_us").c_str());
  } else if (sscanf(both.c_str(), "%lf %lf", &quota, &period) < 2) {
    quota = -1;  // "max"
  }
  return quota > 0 && period > 0 ? quota / period : INFINITY;
}

// The least of a group's quota and those above it. In a container the mount begins at its own group, whatever the path says.
double path_quota(const std::string& mount, std::string path) {
  double least = group_quota(mount);
  if (path.compare(0, 1, "/") != 0) return least;
  for (; path.size() > 1; path.resize(path.find_last_of('/'))) least = std::min(least, group_quota(mount + path));
  return least;
}

}  // namespace

double cpu_quota(const std::string& listing, const std::string& mount) {
  double least = std::min(group_quota(mount), group_quota(mount + "/cpu"));
  std::ifstream lines(listing);
  for (std::string line; std::getline(lines, line);) {  // number:controllers:path; version 2 names no controllers
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first, second - first + 1), path = line.substr(second + 1);
    if (controllers == "::") least = std::min(least, path_quota(mount, path));
    if ((',' + controllers.substr(1, controllers.size() - 2) + ',').find(",cpu,") != std::string::npos)
      least = std::min(least, path_quota(mount + "/cpu", path));
  }
  return least;
}

}  // namespace ivlite
