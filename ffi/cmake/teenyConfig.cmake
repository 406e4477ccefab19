# find_package(teeny) makes two targets:
#
#   teeny::teeny    the shared library
#   teeny::static   the static library, where it is installed
#
# The files are found from the place of this one, so the installed tree may be moved.
get_filename_component(_teeny_prefix "${CMAKE_CURRENT_LIST_DIR}" PATH) # cmake/
get_filename_component(_teeny_prefix "${_teeny_prefix}" PATH)          # share/ or lib/
get_filename_component(_teeny_prefix "${_teeny_prefix}" PATH)          # the prefix, or lib/ in it
if(NOT EXISTS "${_teeny_prefix}/include/teeny.h")
    # lib/x86_64-linux-gnu/cmake/teeny
    get_filename_component(_teeny_prefix "${_teeny_prefix}" PATH)
endif()

set(_teeny_suffixes lib lib64)
if(CMAKE_LIBRARY_ARCHITECTURE)
    list(INSERT _teeny_suffixes 0 "lib/${CMAKE_LIBRARY_ARCHITECTURE}")
endif()

# Searched anew each time, and not in the cache, where a moved tree would leave the old place.
unset(_teeny_shared CACHE)
unset(_teeny_static CACHE)
find_library(_teeny_shared NAMES teeny PATHS "${_teeny_prefix}"
    PATH_SUFFIXES ${_teeny_suffixes} NO_DEFAULT_PATH)
find_library(_teeny_static NAMES libteeny.a PATHS "${_teeny_prefix}"
    PATH_SUFFIXES ${_teeny_suffixes} NO_DEFAULT_PATH)

if(NOT EXISTS "${_teeny_prefix}/include/teeny.h" OR NOT (_teeny_shared OR _teeny_static))
    set(teeny_FOUND FALSE)
    set(teeny_NOT_FOUND_MESSAGE
        "expected include/teeny.h and a library of teeny in ${_teeny_prefix}, and found them not")
    return()
endif()

if(_teeny_shared AND NOT TARGET teeny::teeny)
    add_library(teeny::teeny SHARED IMPORTED)
    # A link's name may lead elsewhere than its target; the loader asks for the latter's soname.
    set_target_properties(teeny::teeny PROPERTIES
        IMPORTED_LOCATION "${_teeny_shared}"
        INTERFACE_INCLUDE_DIRECTORIES "${_teeny_prefix}/include")
endif()

if(_teeny_static AND NOT TARGET teeny::static)
    add_library(teeny::static STATIC IMPORTED)
    set_target_properties(teeny::static PROPERTIES
        IMPORTED_LOCATION "${_teeny_static}"
        INTERFACE_INCLUDE_DIRECTORIES "${_teeny_prefix}/include")
    if(UNIX AND NOT APPLE)
        # What Rust's standard library uses of the system.
        set_target_properties(teeny::static PROPERTIES
            INTERFACE_LINK_LIBRARIES "gcc_s;pthread;dl;m;c")
    endif()
endif()

unset(_teeny_shared CACHE)
unset(_teeny_static CACHE)
unset(_teeny_suffixes)
unset(_teeny_prefix)
set(teeny_FOUND TRUE)
