# The version is that of teeny.pc. Every version since the first of this ABI has what older ones have.
include("${CMAKE_CURRENT_LIST_DIR}/teenyFiles.cmake")
set(_teeny_first_of_this_abi 0.1.0) # TEENY_ABI_VERSION 1

set(PACKAGE_VERSION "")
if(_teeny_pc)
    file(STRINGS "${_teeny_pc}" PACKAGE_VERSION REGEX "^Version:")
    string(REGEX REPLACE "^Version: *" "" PACKAGE_VERSION "${PACKAGE_VERSION}")
endif()

set(PACKAGE_VERSION_COMPATIBLE FALSE)
if(PACKAGE_VERSION)
    if(NOT PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION
            AND NOT PACKAGE_FIND_VERSION VERSION_LESS _teeny_first_of_this_abi)
        set(PACKAGE_VERSION_COMPATIBLE TRUE)
    endif()
    if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
        set(PACKAGE_VERSION_EXACT TRUE)
    endif()
    if(PACKAGE_FIND_VERSION_RANGE)
        if(PACKAGE_VERSION VERSION_GREATER PACKAGE_FIND_VERSION_MAX
                OR (PACKAGE_FIND_VERSION_RANGE_MAX STREQUAL "EXCLUDE"
                    AND PACKAGE_VERSION VERSION_EQUAL PACKAGE_FIND_VERSION_MAX))
            set(PACKAGE_VERSION_COMPATIBLE FALSE)
        endif()
    endif()
endif()
