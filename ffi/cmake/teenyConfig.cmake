# find_package(teeny) makes the targets of what is installed:
#
#   teeny::teeny    the shared library
#   teeny::static   the static library
#
# Nothing here names a place or a version: the prefix is the folder above this file that has
# include/teeny.h, so the installed tree may be moved, and what the static library needs of the
# system comes from teeny.pc, where the compiler's own list is.
include("${CMAKE_CURRENT_LIST_DIR}/teenyFiles.cmake")

if(NOT _teeny_prefix OR NOT (_teeny_shared OR _teeny_static))
    set(teeny_FOUND FALSE)
    set(teeny_NOT_FOUND_MESSAGE "above ${CMAKE_CURRENT_LIST_DIR}: found no folder with \
include/teeny.h, pkgconfig/teeny.pc and a library of teeny, expected the installed tree")
    return()
endif()

if(_teeny_shared AND NOT TARGET teeny::teeny)
    add_library(teeny::teeny SHARED IMPORTED)
    set_target_properties(teeny::teeny PROPERTIES
        IMPORTED_LOCATION "${_teeny_shared}"
        INTERFACE_INCLUDE_DIRECTORIES "${_teeny_prefix}/include")
endif()

if(_teeny_static AND NOT TARGET teeny::static)
    file(STRINGS "${_teeny_pc}" _teeny_needs REGEX "^Libs.private:")
    string(REGEX REPLACE "^Libs.private: *" "" _teeny_needs "${_teeny_needs}")
    separate_arguments(_teeny_needs UNIX_COMMAND "${_teeny_needs}")
    add_library(teeny::static STATIC IMPORTED)
    set_target_properties(teeny::static PROPERTIES
        IMPORTED_LOCATION "${_teeny_static}"
        INTERFACE_INCLUDE_DIRECTORIES "${_teeny_prefix}/include"
        INTERFACE_LINK_LIBRARIES "${_teeny_needs}")
endif()
